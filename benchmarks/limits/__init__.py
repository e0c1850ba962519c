"""What figures are held against: the limit of the hardware, and memory."""
