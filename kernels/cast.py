"""Casts of float32 on bit patterns, equal to numpy's.

Keras 3, tf_keras and TensorFlow 1 sessions let numpy cast an array, or a dataset, before TensorFlow sees it. numpy
rounds to nearest, ties to even, keeps denormals, and gives infinity from halfway beyond the largest number on.
``tf.cast``, which comes into play only where a tensor is assigned, gives the same numbers, but other NaNs:

========  =====================================  ==========================================================
          numpy                                  ``tf.cast`` on a CPU
========  =====================================  ==========================================================
bfloat16  the default NaN with the NaN's sign    positive in whole vectors of 8, with its sign in the rest
float16   sign and upper ten bits of the         quiet: with its upper bits (TensorFlow 2.21), or the default
          payload, a signalling NaN unquieted    one (2.16)
========  =====================================  ==========================================================

(Measured on x86-64 with TensorFlow 2.16 and 2.21, numpy 1.26 and 2.4, ml_dtypes 0.3 and 0.6.)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

Cast = Literal["bfloat16", "float16"]

# Keys: the names of the dtypes to cast from and to.
CASTS: Mapping[tuple[str, str], Cast] = MappingProxyType(
    {("float32", "bfloat16"): "bfloat16", ("float32", "float16"): "float16"}
)


def cast_bits(source: np.ndarray[Any, Any], destination: np.ndarray[Any, Any], kind: Cast) -> None:
    """Cast exactly as stock Keras does; every other implementation is compared with this one.

    Parameters
    ----------
    source : ndarray of uint32
        Bit patterns of float32.
    destination : ndarray of uint16
        Receives the bit patterns; of the same shape.
    kind : {"bfloat16", "float16"}
        The dtype of the destination.
    """
    dtype: np.dtype[Any] = np.dtype(np.float16)
    if kind == "bfloat16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.copyto(destination.view(dtype), source.view(np.float32), casting="unsafe")


def quiet_bit() -> int:
    """Return the bit that numpy sets in every float16 NaN: 0, or 0x0200 where numpy was built to cast in hardware."""
    half = np.empty(1, np.uint16)
    cast_bits(np.array([0x7F800001], np.uint32), half, "float16")
    return int(half[0]) & 0x0200
