"""Running a plan: readers fill buffers ahead, this thread turns them into values of variables."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import tensorflow as tf

from fastassign.assigning import host, library
from fastassign.catalog.file import WeightFile
from fastassign.catalog.hdf5 import Decoder
from fastassign.catalog.open import numpy_dtype
from fastassign.catalog.records import TensorRecord
from fastassign.errors import FastAssignError, name_state
from fastassign.matching.assignment import Assignment, Failure, Matching, failure_notices
from fastassign.planning.coalesce import GAP, Read
from fastassign.planning.plan import Batch, Placement, Plan
from fastassign.progress import Callback, ProgressEvent
from fastassign.report import Report
from fastassign.streaming.source import FileSource, Source, fill
from fastassign.streaming.workers import Workers
from fastassign.targets.target import Target


def execute(
    plan: Plan,
    progress: Callback | None = None,
    *,
    make_source: Callable[[WeightFile], Source] = FileSource,
    convert_layer: Callable[..., list[Any]] | None = None,
    skip_mismatch: bool = False,
) -> Report:
    """Run a plan.

    Parameters
    ----------
    plan : Plan
        What to do.
    progress : callable, optional
        Gets a ``ProgressEvent`` after every variable, in this thread.
    make_source : callable
        Makes the source to read from; tests put faults here.
    convert_layer : callable, optional
        The library's conversion of old layouts, where the plan has conversions.
    skip_mismatch : bool
        Whether an object whose own method fails is skipped.

    Returns
    -------
    Report

    Raises
    ------
    Truncated, ReadFailed, Changed
        The file could not be read to its end. The attribute ``assigned`` and a note name the variables that
        have new values already; with an atomic plan there are none.
    """
    begin = time.perf_counter()
    with plan.catalog.open() as file:
        run = _Run(plan, file, make_source(file), progress, begin)
        run.all(convert_layer, skip_mismatch)
    for finalize in plan.matching.finalizers:
        finalize()
    return run.report()


class _Run:
    """The state of one execution."""

    def __init__(self, plan: Plan, file: WeightFile, source: Source, progress: Callback | None, begin: float) -> None:
        self._plan, self._file, self._source, self._progress = plan, file, source, progress
        self._begin = begin
        self._assigned: list[str] = []
        self._cast: list[str] = []
        self._routes: dict[str, int] = {}
        self._done_bytes = 0
        self._total_bytes = plan.nbytes
        self._total = sum(len(batch.placements) for batch in plan.batches)
        self._waited = self._assigning = 0.0
        self._decoder: Decoder | None = None
        self._decoder_lock = threading.Lock()
        self._rollback = library.Rollback()
        self._failures = list(plan.matching.failures)
        self._gap = memoryview(bytearray(plan.options.gap_bytes))

    def all(self, convert_layer: Callable[..., list[Any]] | None, skip_mismatch: bool) -> None:
        """Do everything that the plan says, or name the state in which it ended."""
        try:
            self._rollback, names, failures = library.run_hooks(
                self._plan.matching, self._read_array, skip_mismatch=skip_mismatch
            )
            if names:
                self._count("hook", names)
            self._failures += failures
            _tell_user(self._plan.matching, self._failures)
            self._convert(convert_layer)
            self._stream()
            self._file.check_unchanged()
        except BaseException as error:
            if self._plan.atomic:
                self._rollback.restore()
                self._assigned.clear()
            if isinstance(error, FastAssignError):
                error.at(self._plan.catalog.path)
            name_state(error, tuple(self._assigned), self._total)
            raise
        finally:
            if self._decoder is not None:
                self._decoder.__exit__(None, None, None)

    def report(self) -> Report:
        """Sum up."""
        plan, matching = self._plan, self._plan.matching
        now = time.perf_counter()
        seconds = dict(plan.seconds)
        seconds.update(wait=self._waited, assign=self._assigning, execute=now - self._begin)
        seconds["total"] = sum(plan.seconds.values()) + seconds["execute"]
        return Report(
            file=str(plan.catalog.path),
            assigned=len(self._assigned),
            cast=tuple(self._cast),
            skipped=(*matching.skipped, *(f"{failure.obj}: {failure.error}" for failure in self._failures)),
            repaired=tuple(matching.repaired),
            missing=tuple(target.name for target in matching.missing),
            unexpected=tuple(record.key for record in matching.unexpected),
            nbytes=plan.nbytes,
            seconds=seconds,
            routes=self._routes,
            index_cached=plan.catalog.cached,
        )

    # Batches.

    def _stream(self) -> None:
        batches, atomic = self._plan.batches, self._plan.atomic
        open_batches: dict[int, _OpenBatch] = {}
        finished: list[_OpenBatch] = []
        in_flight = upcoming = 0
        with Workers(self._plan.options.threads) as workers:
            while upcoming < len(batches) or open_batches:
                while upcoming < len(batches) and (
                    atomic or not open_batches or in_flight + batches[upcoming].staged_bytes <= self._plan.window_bytes
                ):
                    batch = batches[upcoming]
                    opened = _OpenBatch(batch)
                    in_flight += batch.staged_bytes
                    if self._submit(workers, upcoming, opened):
                        open_batches[upcoming] = opened
                    else:
                        in_flight -= batch.staged_bytes
                        finished.append(opened)
                    upcoming += 1
                if open_batches:
                    waiting = time.perf_counter()
                    number = workers.collect()
                    self._waited += time.perf_counter() - waiting
                    opened = open_batches[number]
                    opened.unread -= 1
                    if not opened.unread:
                        in_flight -= opened.batch.staged_bytes
                        finished.append(open_batches.pop(number))
                if not atomic:
                    self._assign_all(finished)
        self._assign_all(finished)

    def _submit(self, workers: Workers, number: int, opened: _OpenBatch) -> bool:
        """Queue the reads of a batch; return whether there are any."""
        batch = opened.batch
        views = opened.views()
        for read in batch.reads:
            workers.submit(number, partial(fill, self._source, self._buffers(read, views), read.offset, read.nbytes))
        opened.unread = len(batch.reads)
        for placement, array in zip(batch.placements, opened.arrays, strict=True):
            if placement.assignment.record.encoding == "library" and array.size:
                workers.submit(number, partial(self._decode, placement.assignment.record, array))
                opened.unread += 1
        return opened.unread > 0

    def _buffers(self, read: Read, views: list[memoryview]) -> list[memoryview]:
        return [
            self._gap[: piece.nbytes]
            if piece.owner == GAP
            else views[piece.owner][piece.start : piece.start + piece.nbytes]
            for piece in read.pieces
        ]

    def _assign_all(self, finished: list[_OpenBatch]) -> None:
        if not finished:
            return
        self._file.check_unchanged()
        begin = time.perf_counter()
        for opened in finished:
            members = zip(opened.batch.placements, opened.values, opened.arrays, strict=True)
            # An op whose device is named is not placed first: a quarter less time per variable.
            for device, group in groupby(members, key=lambda member: member[0].assignment.target.device):
                with tf.device(device) if device else nullcontext():
                    for placement, value, array in group:
                        self._assign(placement, value, array)
            opened.release()
        finished.clear()
        self._assigning += time.perf_counter() - begin

    def _assign(self, placement: Placement, value: Any, array: np.ndarray[Any, Any]) -> None:
        assignment = placement.assignment
        target = assignment.target
        self._remember(target)
        # Named before it changes: an interrupt in between names one variable too many, never one too few.
        self._assigned.append(target.name)
        try:
            if placement.route == "assign":
                self._library_assign(assignment, array)
            elif array.size:
                host.assign(target.resource, value, placement.nbytes)
        except Exception:
            self._assigned.pop()
            raise
        if assignment.fit == "cast":
            self._cast.append(f"{target.name}: {assignment.record.dtype} to {target.dtype}")
        self._done_bytes += placement.nbytes
        self._tell(placement.route, 1, target.name)

    def _library_assign(self, assignment: Assignment, array: np.ndarray[Any, Any]) -> None:
        matching, target = self._plan.matching, assignment.target
        value: Any = array
        if matching.library == "tf_keras" and matching.layout == "legacy":
            # batch_set_value casts with numpy before it assigns.
            value = np.asarray(array, dtype=tf.as_dtype(target.dtype).as_numpy_dtype)
        target.variable.assign(value)

    # What only the library can do.

    def _convert(self, convert_layer: Callable[..., list[Any]] | None) -> None:
        for conversion in self._plan.matching.conversions:
            if convert_layer is None:
                raise TypeError("the plan has conversions, but no function that does them")
            for target, value in library.convert(conversion, self._read_array, convert_layer):
                dtype = tf.as_dtype(target.dtype).as_numpy_dtype
                self._remember(target)
                target.variable.assign(np.asarray(value, dtype=dtype))
                self._count("convert", [target.name])
            self._done_bytes += sum(record.nbytes for record in conversion.records)

    def _read_array(self, record: TensorRecord) -> np.ndarray[Any, Any]:
        array = np.empty(record.shape, dtype=numpy_dtype(record.dtype))
        if record.encoding == "library":
            self._decode(record, array)
            return array
        view, start = host.as_bytes(array), 0
        for extent in record.extents:
            fill(self._source, [view[start : start + extent.nbytes]], extent.offset, extent.nbytes)
            start += extent.nbytes
        return array

    def _decode(self, record: TensorRecord, array: np.ndarray[Any, Any]) -> None:
        with self._decoder_lock:
            if self._decoder is None:
                index = self._plan.catalog.index
                self._decoder = Decoder(self._file, base=index.base, size=index.size)
        self._decoder.read_into(record, array)

    def _remember(self, target: Target) -> None:
        # Until all is done: a callback may raise, and Ctrl-C may come, after the first assignment.
        if self._plan.atomic:
            self._rollback.remember(target.variable)

    def _count(self, route: str, names: list[str]) -> None:
        self._assigned += names
        self._tell(route, len(names), names[-1])

    def _tell(self, route: str, count: int, name: str) -> None:
        self._routes[route] = self._routes.get(route, 0) + count
        if self._progress is not None:
            self._progress(
                ProgressEvent(
                    done_bytes=self._done_bytes,
                    total_bytes=self._total_bytes,
                    done_variables=len(self._assigned),
                    total_variables=max(self._total, len(self._assigned)),
                    seconds=time.perf_counter() - self._begin,
                    variable=name,
                )
            )


def _tell_user(matching: Matching, failures: list[Failure]) -> None:
    """Give stock's warnings, now that it is known which objects failed by their own methods."""
    for notice in (*matching.notices, *failure_notices(matching.library, failures)):
        if notice.channel == "warnings":
            # The level of whoever called load_weights, or Plan.execute.
            warnings.warn(notice.text, UserWarning, stacklevel=6)
        elif notice.channel == "absl":
            logging.getLogger("absl").warning(notice.text)
        else:
            tf.get_logger().warning(notice.text)


class _OpenBatch:
    """A batch whose buffers exist."""

    __slots__ = ("_arena", "arrays", "batch", "unread", "values")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.unread = 0
        # The values, and the same memory as writable arrays of the file's bytes.
        self.values: list[Any] = []
        self.arrays: list[np.ndarray[Any, Any]] = []
        with tf.device("CPU:0"):
            self._arena = host.Arena(batch.arena_bytes) if batch.arena_bytes else None
            for placement, start in zip(batch.placements, batch.arena_starts, strict=True):
                value, array = _allocate(placement, self._arena, start)
                self.values.append(value)
                self.arrays.append(array)

    def views(self) -> list[memoryview]:
        """Return the memory of each value as bytes."""
        # Cut out of the arena as a whole: an array costs three times as much to look at as bytes.
        arena = memoryview(b"") if self._arena is None else host.as_bytes(self._arena.memory)
        members = zip(self.batch.placements, self.batch.arena_starts, self.arrays, strict=True)
        return [
            arena[start : start + placement.nbytes] if placement.route == "arena" else host.as_bytes(array)
            for placement, start, array in members
        ]

    def release(self) -> None:
        """Let go of the memory: what was assigned belongs to the variables now."""
        self.values, self.arrays, self._arena = [], [], None


def _allocate(placement: Placement, arena: host.Arena | None, start: int) -> tuple[Any, np.ndarray[Any, Any]]:
    assignment = placement.assignment
    target, record = assignment.target, assignment.record
    if placement.route == "assign":
        # An opaque record whose variable explains it is read as the variable's dtype.
        dtype = (
            np.dtype(tf.as_dtype(target.dtype).as_numpy_dtype)
            if assignment.fit == "reinterpret"
            else numpy_dtype(record.dtype)
        )
        array = np.empty(record.shape, dtype=dtype)
        return array, array
    if placement.route == "arena" and arena is not None:
        view = arena.view(start, target.shape, target.dtype)
        return view, view
    return host.empty(target.shape, target.dtype)
