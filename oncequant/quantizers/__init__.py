"""Fake-quantizers: `forward(x, bits, signed)` and `initialise(x, bits, signed)`."""
