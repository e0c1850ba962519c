"""The buffers of the variables that are read and assigned together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from fastassign.assigning import host
from fastassign.catalog.memory import ArrayRecord
from fastassign.catalog.open import numpy_dtype
from fastassign.planning.plan import Batch, Placement
from fastassign.targets.variables import numpy_dtype_of

# Arrays in memory are copied in jobs of about this size: small enough that all threads have work, large enough that
# their handling does not count.
SHARE_BYTES = 4 << 20

Copy = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]


class OpenBatch:
    """A batch whose buffers exist.

    Parameters
    ----------
    batch : Batch
        What is allocated.
    pooled : bool
        Whether it is for a graph: the memory then comes from our own pool.
    """

    __slots__ = ("_arena", "arrays", "batch", "slab", "unread", "values")

    def __init__(self, batch: Batch, *, pooled: bool) -> None:
        self.batch = batch
        self.unread = 0
        # The values, and the same memory as writable arrays of the file's bytes.
        self.values: list[Any] = []
        self.arrays: list[np.ndarray[Any, Any]] = []
        with nullcontext() if pooled else tf.device("CPU:0"):
            self._arena = None
            # The arena as a tensor of the variables' dtype, where they all have the same.
            self.slab: Any = None
            if batch.arena_bytes:
                dtype = _common_dtype(batch)
                self._arena = host.Arena(batch.arena_bytes, dtype=dtype or "uint8", pooled=pooled)
                self.slab = self._arena.tensor if dtype else None
            for placement, start in zip(batch.placements, batch.arena_starts, strict=True):
                value, array = _allocate(placement, self._arena, start)
                self.values.append(value)
                self.arrays.append(array)

    def views(self) -> list[memoryview]:
        """Return the memory of each value as bytes."""
        # Cut out of the arena as a whole: an array costs three times as much to look at as bytes.
        arena = memoryview(b"") if self._arena is None else host.as_bytes(self._arena.memory)
        members = zip(self.batch.placements, self.batch.arena_starts, self.values, self.arrays, strict=True)
        return [
            arena[start : start + placement.nbytes]
            if placement.arena_bytes and array is value
            else host.as_bytes(array)
            for placement, start, value, array in members
        ]

    def release(self) -> None:
        """Let go of the memory: what was assigned belongs to the variables now."""
        self.values, self.arrays, self._arena, self.slab = [], [], None, None


def _common_dtype(batch: Batch) -> str | None:
    """Return the dtype of all variables in the arena, if they have the same."""
    dtypes = {placement.assignment.target.dtype for placement in batch.placements if placement.arena_bytes}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= host.EMPTY_DTYPES else None


def _allocate(placement: Placement, arena: host.Arena | None, start: int) -> tuple[Any, np.ndarray[Any, Any]]:
    assignment = placement.assignment
    target, record = assignment.target, assignment.record
    if placement.arena_bytes and arena is not None:
        value = arena.view(start, target.shape, target.dtype)
        return value, value if assignment.fit != "cast" else np.empty(record.shape, dtype=numpy_dtype(record.dtype))
    if target.graph is not None:
        array = np.empty(target.shape, dtype=numpy_dtype_of(target.dtype))  # without elements
        return array, array
    if placement.route == "assign":
        # An opaque record whose variable explains it is read as the variable's dtype, and arrays are cast to it.
        is_stored = assignment.fit != "reinterpret" and record.encoding != "array"
        dtype = numpy_dtype(record.dtype) if is_stored else numpy_dtype_of(target.dtype)
        array = np.empty(record.shape, dtype=dtype)
        return array, array
    return host.empty(target.shape, target.dtype)


def shares(batch: Batch, arrays: Sequence[np.ndarray[Any, Any]]) -> Iterator[list[Copy]]:
    """Cut the copies of arrays that are in memory into jobs of some size."""
    share: list[Copy] = []
    nbytes = 0
    for placement, array in zip(batch.placements, arrays, strict=True):
        record = placement.assignment.record
        if isinstance(record, ArrayRecord) and array.size:
            share.append((array, record.array))
            nbytes += array.nbytes
            if nbytes >= SHARE_BYTES:
                yield share
                share, nbytes = [], 0
    if share:
        yield share


def copy(copies: list[Copy]) -> None:
    """Copy arrays, with numpy's casts."""
    for target, source in copies:
        np.copyto(target, source, casting="unsafe")
