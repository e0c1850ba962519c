"""Running a plan: readers fill buffers ahead, this thread turns them into values of variables."""

from __future__ import annotations

import logging
import sys
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

from fastassign.assigning import graph, host, library
from fastassign.assigning.batches import OpenBatch, copy, shares
from fastassign.assigning.fused import FusedAssignments, Packed
from fastassign.assigning.gate import Gate
from fastassign.catalog.file import WeightFile
from fastassign.catalog.hdf5 import Decoder
from fastassign.catalog.memory import MemoryFile
from fastassign.catalog.open import numpy_dtype
from fastassign.catalog.records import TensorRecord
from fastassign.errors import FastAssignError, name_state
from fastassign.matching.assignment import Assignment, Failure, Matching, failure_notices
from fastassign.planning.coalesce import GAP, Read
from fastassign.planning.plan import Placement, Plan
from fastassign.progress import Callback, ProgressEvent
from fastassign.report import Report
from fastassign.streaming.source import FileSource, Source, fill
from fastassign.streaming.workers import Workers
from fastassign.targets.session import mark_initialized
from fastassign.targets.target import Target
from fastassign.targets.variables import eager_scope, numpy_dtype_of

_Member = tuple[Placement, Any, "np.ndarray[Any, Any]"]


def execute(
    plan: Plan,
    progress: Callback | None = None,
    *,
    make_source: Callable[[Any], Source] = FileSource,
    convert_layer: Callable[..., list[Any]] | None = None,
    skip_mismatch: bool = False,
    session: Any = None,
    gate: Gate | None = None,
    fused: FusedAssignments | None = None,
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
    session : tf.compat.v1.Session, optional
        Runs the assignments, where the variables belong to a TensorFlow 1 graph.
    gate : Gate, optional
        May stop the load before the first variable changes, and holds a lock while they do.
    fused : FusedAssignments, optional
        Functions that assign many variables at once, for a plan that is carried out again and again.

    Returns
    -------
    Report

    Raises
    ------
    Truncated, ReadFailed, Changed
        The file could not be read to its end. The attribute ``assigned`` and a note name the variables that
        have new values already; with an atomic plan there are none.
    Cancelled
        The gate was closed before the first variable changed.
    """
    begin = time.perf_counter()
    if session is not None:
        graph.prepare(session.graph, plan.matching.targets)
    with eager_scope() if session is None else nullcontext(), _opened(plan) as file:
        run = _Run(plan, file, make_source(file), progress, begin, session=session, gate=gate or Gate(), fused=fused)
        run.all(convert_layer, skip_mismatch)
    return run.report()


def _opened(plan: Plan) -> WeightFile | MemoryFile:
    try:
        return plan.catalog.open()
    except FastAssignError as error:
        name_state(error, (), len(plan.matching.targets))
        raise


class _Run:
    """The state of one execution."""

    def __init__(
        self,
        plan: Plan,
        file: WeightFile | MemoryFile,
        source: Source,
        progress: Callback | None,
        begin: float,
        *,
        session: Any,
        gate: Gate,
        fused: FusedAssignments | None,
    ) -> None:
        self._plan, self._file, self._source, self._progress = plan, file, source, progress
        self._session, self._gate, self._fused = session, gate, fused
        self._begin = begin
        self._assigned: list[str] = []
        self._cast: list[str] = []
        self._routes: dict[str, int] = {}
        self._read_bytes = self._done_bytes = 0
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
            if self._plan.read_first:
                finished = self._read()
                with self._gate:
                    self._run_library(convert_layer, skip_mismatch)
                    self._assign_all(finished)
                    self._finish()
            else:
                self._run_library(convert_layer, skip_mismatch)
                self._assign_all(self._read())
                self._file.check_unchanged()
                self._finish()
        except BaseException as error:
            # What a session was fed with stays: fetching the old values first would take as long as the load.
            if self._plan.atomic and self._session is None:
                self._rollback.restore()
                self._assigned.clear()
            if isinstance(error, FastAssignError) and isinstance(self._file, WeightFile):
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

    def _run_library(self, convert_layer: Callable[..., list[Any]] | None, skip_mismatch: bool) -> None:
        self._rollback, names, failures = library.run_hooks(
            self._plan.matching, self._read_array, skip_mismatch=skip_mismatch
        )
        if names:
            self._count("hook", names)
        self._failures += failures
        _tell_user(self._plan.matching, self._failures)
        self._convert(convert_layer)

    def _finish(self) -> None:
        if self._session is None:
            for finalize in self._plan.matching.finalizers:
                finalize()
        else:
            # What a layer derives from its weights in a graph is an op that reads them: it needs no renewal.
            mark_initialized(self._session, self._plan.matching.targets)

    # Batches.

    def _read(self) -> list[OpenBatch]:
        """Read all batches, and assign them as they come where the plan does not forbid it; return the rest."""
        batches, read_first = self._plan.batches, self._plan.read_first
        open_batches: dict[int, OpenBatch] = {}
        finished: list[OpenBatch] = []
        in_flight = upcoming = 0
        with Workers(self._plan.options.threads) as workers:
            while upcoming < len(batches) or open_batches:
                while upcoming < len(batches) and (
                    read_first
                    or not open_batches
                    or in_flight + batches[upcoming].staged_bytes <= self._plan.window_bytes
                ):
                    batch = batches[upcoming]
                    opened = OpenBatch(batch, pooled=self._session is not None)
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
                        self._read_bytes += opened.batch.nbytes
                        if read_first:
                            self._tell_progress("")
                self._gate.check()
                if not read_first:
                    self._assign_all(finished)
        return finished

    def _submit(self, workers: Workers, number: int, opened: OpenBatch) -> bool:
        """Queue the reads of a batch; return whether there are any."""
        batch = opened.batch
        views = opened.views()
        for read in batch.reads:
            workers.submit(number, partial(fill, self._source, self._buffers(read, views), read.offset, read.nbytes))
        opened.unread = len(batch.reads)
        for placement, array in zip(batch.placements, opened.arrays, strict=True):
            record = placement.assignment.record
            if record.encoding == "library" and array.size:
                workers.submit(number, partial(self._decode, record, array))
                opened.unread += 1
        for copies in shares(batch, opened.arrays):
            workers.submit(number, partial(copy, copies))
            opened.unread += 1
        return opened.unread > 0

    def _buffers(self, read: Read, views: list[memoryview]) -> list[memoryview]:
        return [
            self._gap[: piece.nbytes]
            if piece.owner == GAP
            else views[piece.owner][piece.start : piece.start + piece.nbytes]
            for piece in read.pieces
        ]

    def _assign_all(self, finished: list[OpenBatch]) -> None:
        if not finished:
            return
        self._file.check_unchanged()
        begin = time.perf_counter()
        for opened in finished:
            if self._session is not None:
                self._feed(opened)
                opened.release()
                continue
            members = zip(opened.batch.placements, opened.values, opened.arrays, strict=True)
            # An op whose device is named is not placed first: a quarter less time per variable.
            for device, group in groupby(members, key=lambda member: member[0].assignment.target.device):
                with tf.device(device) if device else nullcontext():
                    if self._fused is not None and "/device:CPU:" in device:
                        self._assign_fused(self._fused, opened, list(group))
                        continue
                    for placement, value, array in group:
                        self._assign(placement, value, array)
            opened.release()
        finished.clear()
        self._assigning += time.perf_counter() - begin

    def _assign_fused(self, fused: FusedAssignments, opened: OpenBatch, members: list[_Member]) -> None:
        single: list[_Member] = []
        packed: list[_Member] = []
        # All of a slab is cut up at once: it has to be of one device.
        slab = opened.slab if len(members) == len(opened.batch.placements) else None
        for member in members:
            placement, value, array = member
            if placement.route not in {"arena", "owned"} or not placement.nbytes:
                self._assign(placement, value, array)
            elif slab is not None and placement.arena_bytes:
                packed.append(member)
            else:
                single.append(member)
        targets = [placement.assignment.target for placement, _, _ in single + packed]
        for target in targets:
            self._remember(target)
        # Named before they change, and named still if the call fails: which of them it reached is not known.
        self._assigned += [target.name for target in targets]
        if targets:
            rooms = [placement.arena_bytes for placement, _, _ in packed]
            rest = Packed(targets[len(single) :], rooms, slab) if packed else None
            fused.assign(targets[: len(single)], [value for _, value, _ in single], rest)
        for placement, _, _ in single + packed:
            self._done_bytes += placement.nbytes
            self._tell(placement.route, 1, placement.assignment.target.name)

    def _feed(self, opened: OpenBatch) -> None:
        placements = opened.batch.placements
        for placement, value, array in zip(placements, opened.values, opened.arrays, strict=True):
            if placement.assignment.fit == "cast":
                np.copyto(value, array, casting="unsafe")
            self._note_cast(placement.assignment)
        targets = [placement.assignment.target for placement in placements]
        self._done_bytes += opened.batch.nbytes
        self._feed_values("feed", targets, opened.values)

    def _feed_values(self, route: str, targets: list[Target], values: list[Any]) -> None:
        names = [target.name for target in targets]
        # Named before they change, and named still if the run fails: which of them it reached is not known.
        self._assigned += names
        graph.feed(self._session, targets, values)
        self._tell(route, len(names), names[-1])

    def _note_cast(self, assignment: Assignment) -> None:
        if assignment.fit == "cast" or assignment.record.detail.startswith("cast"):
            self._cast.append(f"{assignment.target.name}: {assignment.record.dtype} to {assignment.target.dtype}")

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
        self._note_cast(assignment)
        self._done_bytes += placement.nbytes
        self._tell(placement.route, 1, target.name)

    def _library_assign(self, assignment: Assignment, array: np.ndarray[Any, Any]) -> None:
        matching, target = self._plan.matching, assignment.target
        value: Any = array
        if matching.layout == "named" or (matching.library == "tf_keras" and matching.layout == "legacy"):
            # batch_set_value casts with numpy before it assigns.
            value = np.asarray(array, dtype=numpy_dtype_of(target.dtype))
        target.variable.assign(value)

    # What only the library can do.

    def _convert(self, convert_layer: Callable[..., list[Any]] | None) -> None:
        pairs: list[tuple[Target, Any]] = []
        for conversion in self._plan.matching.conversions:
            if convert_layer is None:
                raise TypeError("the plan has conversions, but no function that does them")
            pairs += library.convert(conversion, self._read_array, convert_layer)
            self._done_bytes += sum(record.nbytes for record in conversion.records)
        if not pairs:
            return
        # All are read before the first is assigned.
        self._file.check_unchanged()
        if self._session is not None:
            values = [host.owned_copy(value, target) for target, value in pairs]
            self._feed_values("convert", [target for target, _ in pairs], values)
            return
        for target, value in pairs:
            self._remember(target)
            target.variable.assign(np.asarray(value, dtype=numpy_dtype_of(target.dtype)))
            self._count("convert", [target.name])

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
                index = self._plan.catalog.index  # type: ignore[union-attr] # arrays are not decoded
                self._decoder = Decoder(self._file, base=index.base, size=index.size)  # type: ignore[arg-type] # nor is
        self._decoder.read_into(record, array)

    def _remember(self, target: Target) -> None:
        # Until all is done: a callback may raise, and Ctrl-C may come, after the first assignment.
        if self._plan.atomic and self._session is None:
            self._rollback.remember(target.variable)

    def _count(self, route: str, names: list[str]) -> None:
        self._assigned += names
        self._tell(route, len(names), names[-1])

    def _tell(self, route: str, count: int, name: str) -> None:
        self._routes[route] = self._routes.get(route, 0) + count
        self._tell_progress(name)

    def _tell_progress(self, name: str) -> None:
        if self._progress is not None:
            self._progress(
                ProgressEvent(
                    read_bytes=max(self._read_bytes, self._done_bytes),
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
            warnings.warn(notice.text, UserWarning, stacklevel=_callers_level())
        elif notice.channel == "absl":
            logging.getLogger("absl").warning(notice.text)
        else:
            tf.get_logger().warning(notice.text)


def _callers_level() -> int:
    """Return the ``stacklevel`` at which a warning of ``_tell_user`` points at the code that called fastassign."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("fastassign."):
        level, frame = level + 1, frame.f_back
    return level
