"""Deployment: one graph, the formats of its files, simulators of what runtimes compute, and verification."""
