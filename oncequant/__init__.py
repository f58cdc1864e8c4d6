"""Train one quantization-aware supernet, deploy compact 4/3/2-bit networks for any budget."""
