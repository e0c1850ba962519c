"""Host memory that TensorFlow may keep."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastassign.planning.plan import ALIGNMENT


def aligned(nbytes: int) -> np.ndarray[Any, Any]:
    """Return an uninitialised byte array whose first byte is 64-byte aligned."""
    whole = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + nbytes]


def is_aligned(array: np.ndarray[Any, Any]) -> bool:
    """Whether TensorFlow may compute on the array's memory."""
    return bool(array.ctypes.data % ALIGNMENT == 0)
