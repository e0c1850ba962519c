"""Batches with a value of its own for each variable, eager or of a TensorFlow 1 graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import tensorflow as tf

from fastassign.assigning import graph
from fastassign.assigning.host import memory
from fastassign.assigning.host.host_batch import HostBatch
from fastassign.assigning.journal import Journal
from fastassign.assigning.open_batch import Decode
from fastassign.catalog.catalog import numpy_dtype
from fastassign.catalog.memory import ArrayRecord
from fastassign.matching.assignment import Assignment
from fastassign.planning.batches import Batch
from fastassign.planning.routes import Placement
from fastassign.streaming.buffers import ArenaPool
from fastassign.streaming.source import Source
from fastassign.targets.variables import numpy_dtype_of

# Arrays in memory are copied in jobs of about this size: small enough that all threads have work, large enough that
# their handling does not count.
SHARE_BYTES = 4 << 20

_Copy = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]


class ValueBatch(HostBatch):
    """A batch with a value of its own for each variable; small ones share an arena.

    Parameters
    ----------
    batch : Batch
        What is allocated.
    pool : ArenaPool, optional
        Where the memory comes from, in place of TensorFlow's allocator.
    """

    __slots__ = ("_arena", "_arrays", "_values")

    def __init__(self, batch: Batch, pool: ArenaPool | None = None) -> None:
        super().__init__(batch)
        # The values, and the same memory as writable arrays of the file's bytes.
        self._values: list[Any] = []
        self._arrays: list[np.ndarray[Any, Any]] = []
        with tf.device("CPU:0") if pool is None else nullcontext():
            self._arena = memory.Arena(batch.arena_bytes, pool) if batch.arena_bytes else None
            for placement, start in zip(batch.placements, batch.arena_starts, strict=True):
                value, array = _allocate(placement, self._arena, start)
                self._values.append(value)
                self._arrays.append(array)

    def jobs(self, source: Source, gap: memoryview, decode: Decode) -> Iterator[Callable[[], None]]:
        """Yield what fills the memory; see ``OpenBatch.jobs``."""
        yield from super().jobs(source, gap, decode)
        for placement, array in zip(self.batch.placements, self._arrays, strict=True):
            record = placement.assignment.record
            if record.encoding == "h5py" and array.size:
                yield partial(decode, record, array)
        for copies in self._shares():
            yield partial(_copy, copies)

    def _views(self) -> list[memoryview]:
        # Cut out of the arena as a whole: an array costs three times as much to look at as bytes.
        arena = memoryview(b"") if self._arena is None else memory.as_bytes(self._arena.memory)
        members = zip(self.batch.placements, self.batch.arena_starts, self._values, self._arrays, strict=True)
        return [
            arena[start : start + placement.nbytes]
            if placement.arena_bytes and array is value
            else memory.as_bytes(array)
            for placement, start, value, array in members
        ]

    def _shares(self) -> Iterator[list[_Copy]]:
        """Cut the copies of arrays that are in memory into jobs of some size."""
        share: list[_Copy] = []
        nbytes = 0
        for placement, array in zip(self.batch.placements, self._arrays, strict=True):
            record = placement.assignment.record
            if isinstance(record, ArrayRecord) and array.size:
                share.append((array, record.array))
                nbytes += array.nbytes
                if nbytes >= SHARE_BYTES:
                    yield share
                    share, nbytes = [], 0
        if share:
            yield share

    def release(self) -> None:
        """Let go of the memory; see ``OpenBatch.release``."""
        self._values, self._arrays, self._arena = [], [], None


class EagerBatch(ValueBatch):
    """Eager variables, assigned one by one.

    Parameters
    ----------
    batch : Batch
        What is allocated.
    """

    __slots__ = ()

    def assign(self, journal: Journal) -> None:
        """Assign what was read; see ``OpenBatch.assign``."""
        members = zip(self.batch.placements, self._values, self._arrays, strict=True)
        # An op whose device is named is not placed first: a quarter less time per variable.
        for device, group in groupby(members, key=lambda member: member[0].assignment.target.device):
            with tf.device(device) if device else nullcontext():
                for placement, value, array in group:
                    with journal.entering(placement):
                        _assign(journal, placement, value, array)
        self.release()


class FedBatch(ValueBatch):
    """Variables of a TensorFlow 1 graph, assigned in one run of a session.

    Parameters
    ----------
    batch : Batch
        What is allocated.
    session : tf.compat.v1.Session
        Runs the assignments.
    pool : ArenaPool
        Where the memory comes from.
    """

    __slots__ = ("_session",)

    def __init__(self, batch: Batch, session: Any, pool: ArenaPool) -> None:
        super().__init__(batch, pool)
        self._session = session

    def assign(self, journal: Journal) -> None:
        """Assign what was read; see ``OpenBatch.assign``."""
        assignments = [placement.assignment for placement in self.batch.placements]
        for assignment, value, array in zip(assignments, self._values, self._arrays, strict=True):
            if assignment.fit == "cast":
                np.copyto(value, array, casting="unsafe")
            journal.note_cast(assignment)
        targets = [assignment.target for assignment in assignments]
        names = [target.name for target in targets]
        # Named before they change, and named still if the run fails: which of them it reached is not known.
        journal.assigned += names
        graph.feed(self._session, targets, self._values)
        self.release()
        journal.enter("feed", names, self.batch.nbytes)


def _allocate(placement: Placement, arena: memory.Arena | None, start: int) -> tuple[Any, np.ndarray[Any, Any]]:
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
    return memory.empty(target.shape, target.dtype)


def _copy(copies: list[_Copy]) -> None:
    """Copy arrays, with numpy's casts."""
    for target, source in copies:
        np.copyto(target, source, casting="unsafe")


def _assign(journal: Journal, placement: Placement, value: Any, array: np.ndarray[Any, Any]) -> None:
    if placement.route == "assign":
        _assign_by_library(journal, placement.assignment, array)
    elif array.size:
        memory.assign(placement.assignment.target.resource, value, placement.nbytes)


def _assign_by_library(journal: Journal, assignment: Assignment, array: np.ndarray[Any, Any]) -> None:
    matching, target = journal.work.matching, assignment.target
    value: Any = array
    if matching.layout == "named" or (matching.library == "tf_keras" and matching.layout == "legacy"):
        # batch_set_value casts with numpy before it assigns.
        value = np.asarray(array, dtype=numpy_dtype_of(target.dtype))
    target.variable.assign(value)
