"""What ``fastassign bench`` and ``make bench`` measure: stock Keras, fastassign and the limit, in one process.

Imported as ``fastassign.benchmarks``.
"""
