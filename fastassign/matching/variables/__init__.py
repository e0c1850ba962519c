"""Variables without a model, matched by name or paired by the caller."""
