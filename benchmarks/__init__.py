"""The measurements of ``fastassign bench`` and ``make bench``: stock Keras, fastassign, and the machine's limit.

Imported as ``fastassign.benchmarks``.
"""
