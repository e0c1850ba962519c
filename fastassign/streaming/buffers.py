"""Host memory that TensorFlow may keep, and memory that it gave back."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np

from fastassign.planning.routes import ALIGNMENT

# Idle memory that is kept at most. A load needs as much as the variables that it replaces hold, and gets it back when
# they let go: so after two loads of a model this is what a third finds warm. 200 MB copied into memory that was
# touched before take half the time of as much that was not.
KEEP_BYTES = 1 << 30


def aligned_array(nbytes: int) -> np.ndarray[Any, Any]:
    """Return an uninitialised byte array whose first byte is 64-byte aligned."""
    whole = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + nbytes]


def is_aligned(array: np.ndarray[Any, Any]) -> bool:
    """Whether TensorFlow may compute on the array's memory."""
    return bool(array.ctypes.data % ALIGNMENT == 0)


class _Lease:
    """The owner of lent memory: every array made of it keeps this object alive."""

    __slots__ = ("__array_interface__", "__weakref__")

    def __init__(self, block: np.ndarray[Any, Any]) -> None:
        self.__array_interface__ = block.__array_interface__


class Pool:
    """Aligned memory that comes back by itself when nobody refers to it any more, TensorFlow included.

    Whoever takes a view of it (numpy, TensorFlow, a variable fed with it) keeps it lent; nothing is ever handed out
    twice at a time. May be used from any thread.

    Parameters
    ----------
    keep_bytes : int
        Idle memory that is kept at most; what comes back beyond it goes to the system.
    """

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self.keep_bytes = keep_bytes
        self.idle_bytes = 0
        self._idle: dict[int, list[np.ndarray[Any, Any]]] = {}
        # Memory comes back in whatever thread drops the last reference, at times in the middle of `lease`, when the
        # garbage collector runs there.
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
        lease = _Lease(block)
        weakref.finalize(lease, self._take_back, block).atexit = False
        return np.asarray(lease)

    def release(self) -> None:
        """Give all idle memory to the system."""
        with self._lock:
            self._idle.clear()
            self.idle_bytes = 0

    def _take_back(self, block: np.ndarray[Any, Any]) -> None:
        with self._lock:
            if block.nbytes > self.keep_bytes:
                return
            # What comes back is what the next load will want; of what is idle, the size that came first goes.
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
