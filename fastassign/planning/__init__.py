"""The schedule of a load, by pure arithmetic: routes, batches, reads, memory."""
