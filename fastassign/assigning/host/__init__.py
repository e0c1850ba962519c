"""Putting values into variables of the host."""
