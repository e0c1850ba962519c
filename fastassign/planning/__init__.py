"""Pure arithmetic: routes, batches, reads, memory."""
