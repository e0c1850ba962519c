"""The limits of the hardware, and peak memory."""
