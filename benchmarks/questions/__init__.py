"""Experiments on a real card. Not part of the installed package."""
