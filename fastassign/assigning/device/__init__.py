"""Putting values into variables of a device, by our own copies."""
