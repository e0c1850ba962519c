"""Devices: the driver, page-locked memory, rings of slots, and which devices can be reached."""
