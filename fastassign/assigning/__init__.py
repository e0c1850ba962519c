"""Putting host buffers into variables."""
