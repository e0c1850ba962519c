"""Open lanes to devices, and open batches whose values go through them, by our own copies."""
