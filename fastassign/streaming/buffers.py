"""Aligned host memory that TensorFlow may keep, and a pool of the memory that it gave back."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np

from fastassign.planning.routes import ALIGNMENT

# The most idle memory that the pool keeps. A load needs as much memory as the variables whose values it replaces, and
# the pool gets those old values' memory back. So from the third load of a model on, its memory is there and warm: a
# copy of 200 MB into memory that was touched before takes half the time of a copy into fresh memory.
KEEP_BYTES = 1 << 30


def aligned_array(nbytes: int) -> np.ndarray[Any, Any]:
    """Return an uninitialised byte array whose first byte is 64-byte aligned."""
    whole = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + nbytes]


def is_aligned(array: np.ndarray[Any, Any]) -> bool:
    """Whether TensorFlow may compute on the array's memory."""
    return bool(array.ctypes.data % ALIGNMENT == 0)


class _LentBlock:
    """The owner of a lent block: every array that views the block keeps this object alive."""

    __slots__ = ("__array_interface__", "__weakref__")

    def __init__(self, block: np.ndarray[Any, Any]) -> None:
        self.__array_interface__ = block.__array_interface__


class ArenaPool:
    """A pool of aligned arenas, each of which comes back by itself when its last reference is gone.

    Every view of an arena counts, be it numpy's, TensorFlow's or that of a variable fed with it; no arena is lent twice
    at a time. May be used from any thread.

    Parameters
    ----------
    keep_bytes : int
        The most idle memory that is kept; memory that comes back beyond it goes to the system.
    """

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self.keep_bytes = keep_bytes
        self.idle_bytes = 0
        self._idle: dict[int, list[np.ndarray[Any, Any]]] = {}
        # Memory comes back in the thread that drops the last reference. The garbage collector may do that in the middle
        # of `lease`, so the lock is reentrant.
        self._lock = threading.RLock()

    def lease(self, nbytes: int) -> np.ndarray[Any, Any]:
        """Return an uninitialised byte array whose first byte is 64-byte aligned."""
        with self._lock:
            blocks = self._idle.get(nbytes)
            block = blocks.pop() if blocks else None
            if block is not None:
                self.idle_bytes -= nbytes
        if block is None:
            block = aligned_array(nbytes)
        lent = _LentBlock(block)
        weakref.finalize(lent, self._take_back, block).atexit = False
        return np.asarray(lent)

    def release(self) -> None:
        """Give all idle memory to the system."""
        with self._lock:
            self._idle.clear()
            self.idle_bytes = 0

    def _take_back(self, block: np.ndarray[Any, Any]) -> None:
        with self._lock:
            if block.nbytes > self.keep_bytes:
                return
            # The next load will want this size. To make room, drop the idle size that was given back first.
            while self.idle_bytes + block.nbytes > self.keep_bytes:
                oldest = next(iter(self._idle))
                blocks = self._idle[oldest]
                if blocks:
                    self.idle_bytes -= blocks.pop().nbytes
                else:
                    del self._idle[oldest]
            if block.nbytes:
                self._idle.setdefault(block.nbytes, []).append(block)
                self.idle_bytes += block.nbytes
