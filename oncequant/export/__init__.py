"""Deployment: one graph, two file formats, simulators of what runtimes compute, and their verification."""
