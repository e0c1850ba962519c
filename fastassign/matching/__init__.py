"""Which record of the file goes into which variable of the model."""
