"""The way of the bytes from storage into host memory: sources, reading threads, windows, buffers."""
