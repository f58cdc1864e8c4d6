"""One file per paper; each reads top to bottom like the paper's algorithm."""
