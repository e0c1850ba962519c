"""The CUDA kernels. ``fastassign.kernels.scatter`` imports this module, and so numba, at the first launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda


def _kernel(function: Callable[..., None]) -> Any:
    try:
        return cuda.jit(cache=True)(function)
    except RuntimeError:  # numba may write neither beside this file nor into the user's cache
        return cuda.jit(function)


# All arithmetic is on int64: numba would turn uint64 and a signed number into float64.


@cuda.jit(device=True)
def bfloat16_bits(bits: Any) -> Any:
    """Cast the bit pattern of a float32 to that of a bfloat16, as ``fastassign.kernels.cast.cast_bits`` does."""
    if bits & 0x7FFFFFFF > 0x7F800000:
        return (bits >> 16 & 0x8000) | 0x7FC0
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


@cuda.jit(device=True)
def float16_bits(bits: Any, quiet: Any) -> Any:
    """Cast the bit pattern of a float32 to that of a float16, as ``fastassign.kernels.cast.cast_bits`` does.

    The bits of ``quiet`` are set in every NaN. (The card's own cast turns all NaNs into the same one.)
    """
    sign = bits >> 16 & 0x8000
    magnitude = bits & 0x7FFFFFFF
    if magnitude > 0x7F800000:
        nan = 0x7C00 | quiet | (magnitude >> 13 & 0x03FF)
        # A NaN whose payload is in the lower bits alone would become an infinity.
        return sign | (nan if nan & 0x03FF else nan | 1)
    exponent = magnitude >> 23
    if exponent >= 113:
        shift = 13
        significand = magnitude - (112 << 23)  # the rebased exponent stays in front and takes the carry
    else:
        # Denormal: the leading one is written out. A shift of 25 or more leaves 0 of every significand.
        shift = min(126 - exponent, 25)
        significand = (magnitude & 0x007FFFFF) | 0x00800000
    rounded = (significand + (1 << (shift - 1)) - 1 + (significand >> shift & 1)) >> shift
    return sign | min(rounded, 0x7C00)


# In both kernels the grid's y runs over the rows of the table and its x over the elements of a row. Both stride: a grid
# of any size does all of the work, and as many blocks share a long row as the grid is wide.


@_kernel
def scatter_bytes(source: Any, destination: Any, source_words: Any, destination_words: Any, table: Any) -> None:
    """Copy the rows of ``table``, which counts in bytes; the words (uint64) view the same memory as the bytes."""
    first = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    stride = cuda.gridDim.x * cuda.blockDim.x
    for row in range(cuda.blockIdx.y, table.shape[0], cuda.gridDim.y):
        start = table[row, 0]
        target = table[row, 1]
        count = table[row, 2]
        words = count >> 3 if (start | target) & 7 == 0 else 0
        for i in range(first, words, stride):
            destination_words[(target >> 3) + i] = source_words[(start >> 3) + i]
        for i in range((words << 3) + first, count, stride):
            destination[target + i] = source[start + i]


@_kernel
def scatter_cast(source: Any, destination: Any, table: Any, half: Any, quiet: Any) -> None:
    """Cast the rows of ``table``, which counts in elements, to float16 if ``half``, else to bfloat16."""
    first = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    stride = cuda.gridDim.x * cuda.blockDim.x
    for row in range(cuda.blockIdx.y, table.shape[0], cuda.gridDim.y):
        start = table[row, 0]
        target = table[row, 1]
        for i in range(first, table[row, 2], stride):
            bits = np.int64(source[start + i])
            destination[target + i] = float16_bits(bits, quiet) if half else bfloat16_bits(bits)
