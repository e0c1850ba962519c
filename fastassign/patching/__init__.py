"""Sends Keras' own calls through fastassign: the functions to replace, their replacements, and the way back."""
