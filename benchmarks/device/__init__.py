"""Loads to a GPU, measured."""
