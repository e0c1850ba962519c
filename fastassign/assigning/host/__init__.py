"""Open batches whose memory is on the host."""
