"""Repeated loads into one model."""
