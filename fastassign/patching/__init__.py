"""Keras' own calls go through fastassign: what of them is replaced, by what, and how it is put back."""
