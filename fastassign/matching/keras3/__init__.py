"""Keras 3 files, matched by the path of each object."""
