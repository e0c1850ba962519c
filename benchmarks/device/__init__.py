"""Measurements of loads to a GPU."""
