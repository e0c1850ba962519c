"""Weights of older layouts, converted to those of today."""
