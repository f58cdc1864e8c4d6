"""Fake-quantizers: `forward(x, bits, signed, activation)` and `initialise(x, bits, signed)`."""
