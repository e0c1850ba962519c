"""A mismatch explained: both sides aligned, and the call that loads the layers that fit."""
