"""A mismatch explained: both sides aligned, and the call that loads what fits."""
