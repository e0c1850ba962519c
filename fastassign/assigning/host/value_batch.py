"""Open batches in which each variable, eager or of a TensorFlow 1 graph, has a value of its own."""

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

# Arrays in memory are copied by jobs of about this size: small enough to keep all threads busy, large enough that their
# handling does not count.
SHARE_BYTES = 4 << 20

_Copy = tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]


class ValueBatch(HostBatch):
    """An open batch in which each variable has a value of its own; small values share an arena.

    Parameters
    ----------
    batch : Batch
        The batch to allocate.
    pool : ArenaPool, optional
        The pool that the memory comes from; by default TensorFlow's allocator provides it.
    """

    __slots__ = ("_arena", "_arrays", "_values")

    def __init__(self, batch: Batch, pool: ArenaPool | None = None) -> None:
        super().__init__(batch)
        # The values, and the arrays to read into: the same memory, unless a value is cast.
        self._values: list[Any] = []
        self._arrays: list[np.ndarray[Any, Any]] = []
        with tf.device("CPU:0") if pool is None else nullcontext():
            self._arena = memory.Arena(batch.arena_bytes, pool) if batch.arena_bytes else None
            for placement, start in zip(batch.placements, batch.arena_starts, strict=True):
                value, array = _allocate(placement, self._arena, start)
                self._values.append(value)
                self._arrays.append(array)

    def jobs(self, source: Source, gap: memoryview, decode: Decode) -> Iterator[Callable[[], None]]:
        """Yield jobs that read, decode and copy; see ``OpenBatch.jobs``."""
        yield from super().jobs(source, gap, decode)
        for placement, array in zip(self.batch.placements, self._arrays, strict=True):
            record = placement.assignment.record
            if record.encoding == "h5py" and array.size:
                yield partial(decode, record, array)
        for copies in self._shares():
            yield partial(_copy, copies)

    def _views(self) -> list[memoryview]:
        # Values in the arena are cut out of one view of it: a view of each array takes three times as long.
        arena = memoryview(b"") if self._arena is None else memory.as_bytes(self._arena.memory)
        members = zip(self.batch.placements, self.batch.arena_starts, self._values, self._arrays, strict=True)
        return [
            arena[start : start + placement.nbytes]
            if placement.arena_bytes and array is value
            else memory.as_bytes(array)
            for placement, start, value, array in members
        ]

    def _shares(self) -> Iterator[list[_Copy]]:
        """Group the copies of arrays in memory into jobs of about ``SHARE_BYTES``."""
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
        The batch to allocate.
    """

    __slots__ = ()

    def assign(self, journal: Journal) -> None:
        """Assign the values one by one; see ``OpenBatch.assign``."""
        members = zip(self.batch.placements, self._values, self._arrays, strict=True)
        # TensorFlow need not place an op whose device is named: a quarter less time per variable.
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
        The batch to allocate.
    session : tf.compat.v1.Session
        The session that runs the assignments.
    pool : ArenaPool
        The pool that the memory comes from.
    """

    __slots__ = ("_session",)

    def __init__(self, batch: Batch, session: Any, pool: ArenaPool) -> None:
        super().__init__(batch, pool)
        self._session = session

    def assign(self, journal: Journal) -> None:
        """Assign the values in one run; see ``OpenBatch.assign``."""
        assignments = [placement.assignment for placement in self.batch.placements]
        for assignment, value, array in zip(assignments, self._values, self._arrays, strict=True):
            if assignment.fit == "cast":
                np.copyto(value, array, casting="unsafe")
            journal.note_cast(assignment)
        targets = [assignment.target for assignment in assignments]
        names = [target.name for target in targets]
        # Named before they change, and still if the run fails: nothing tells which of them it reached.
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
        array = np.empty(target.shape, dtype=numpy_dtype_of(target.dtype))  # it has no elements
        return array, array
    if placement.route == "assign":
        # An opaque record is read as its variable's dtype, and an array in memory is cast to it.
        is_stored = assignment.fit != "reinterpret" and record.encoding != "array"
        dtype = numpy_dtype(record.dtype) if is_stored else numpy_dtype_of(target.dtype)
        array = np.empty(record.shape, dtype=dtype)
        return array, array
    return memory.empty(target.shape, target.dtype)


def _copy(copies: list[_Copy]) -> None:
    """Copy arrays, cast by numpy's rules."""
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
