"""What is measured on the host: loads, swaps, graphs, whole models."""
