"""Cases on the host: loads, swaps, graphs, whole models."""
