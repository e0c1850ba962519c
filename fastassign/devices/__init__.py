"""Devices that values are copied to: their driver, page-locked host memory, and the rings that copies go through."""
