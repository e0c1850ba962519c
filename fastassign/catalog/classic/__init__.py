"""The HDF5 structures that Keras writes, read without libhdf5."""
