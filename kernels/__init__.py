"""The numba kernels, for the CPU and for CUDA cards, imported as ``fastassign.kernels``.

A kernel reads arrays and writes arrays: it casts and scatters, and knows nothing of files, models or TensorFlow.
Importing this package imports neither numba nor CUDA; of its modules only ``cuda`` does.
"""
