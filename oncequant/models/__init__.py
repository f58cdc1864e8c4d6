"""Supernets: search space, layer specifications and network, one family per file."""
