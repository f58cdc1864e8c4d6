"""Fake-quantizers: `grid(x, bits, signed, shards)`, `forward(x, bits, signed, activation)`, `initialise(...)`."""
