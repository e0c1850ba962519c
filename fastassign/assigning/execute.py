"""The execution of a load: threads fill buffers ahead, and the calling thread turns them into values of variables."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf

from fastassign.assigning import graph, hooks
from fastassign.assigning.commit import CommitPoint
from fastassign.assigning.converted import Converted, convert
from fastassign.assigning.device.direct import DirectBatch
from fastassign.assigning.device.open_lane import OpenLanes
from fastassign.assigning.device.slab import SlabBatch
from fastassign.assigning.host import memory
from fastassign.assigning.host.fused import FusedBatch, Fusions
from fastassign.assigning.host.value_batch import EagerBatch, FedBatch
from fastassign.assigning.journal import Journal
from fastassign.assigning.open_batch import OpenBatch
from fastassign.assigning.work import Work
from fastassign.catalog.catalog import numpy_dtype
from fastassign.catalog.origin import OpenOrigin
from fastassign.catalog.records import TensorRecord
from fastassign.errors import FastAssignError, name_state
from fastassign.matching.assignment import Failure, Matching, failure_notices
from fastassign.planning.batches import Batch
from fastassign.progress import Callback
from fastassign.report import Report
from fastassign.streaming.source import Source, fill
from fastassign.streaming.unbuffered import UnbufferedFile
from fastassign.streaming.windows import Windows
from fastassign.streaming.workers import Workers
from fastassign.targets.session import mark_initialized
from fastassign.targets.variables import eager_scope


def execute(
    work: Work,
    progress: Callback | None = None,
    *,
    commit_point: CommitPoint | None = None,
    fusions: Fusions | None = None,
) -> Report:
    """Carry a load out.

    Parameters
    ----------
    work : Work
        The load.
    progress : callable, optional
        Gets a ``ProgressEvent`` after every variable, in this thread.
    commit_point : CommitPoint, optional
        The point up to which the load can be stopped; it holds a lock while variables change.
    fusions : Fusions, optional
        The fusions that are kept from one execution of the same schedule to the next.

    Returns
    -------
    Report

    Raises
    ------
    Truncated, ReadFailed, Changed
        The file could not be read to its end. The attribute ``assigned`` and a note name the variables that have new
        values already; if the load is atomic there are none.
    Cancelled
        The load was cancelled before the first variable changed.
    """
    begin = time.perf_counter()
    if work.session is not None:
        graph.prepare(work.session.graph, work.matching.targets)
    journal = Journal(work, progress, begin)
    with eager_scope() if work.session is None else nullcontext(), _opened(work) as opened:
        execution = _Execution(
            work, opened, journal, commit_point or CommitPoint(), Fusions() if fusions is None else fusions
        )
        execution.run()
    return journal.report()


def _opened(work: Work) -> OpenOrigin:
    try:
        return work.origin.open()
    except FastAssignError as error:
        name_state(error, (), len(work.matching.targets))
        raise


class _Execution:
    """The state of one execution."""

    def __init__(
        self, work: Work, opened: OpenOrigin, journal: Journal, commit_point: CommitPoint, fusions: Fusions
    ) -> None:
        self._work, self._opened, self._journal = work, opened, journal
        self._schedule, self._session = work.schedule, work.session
        self._source = work.runtime.make_source(opened)
        self._unbuffered: Source | None = None
        self._batches: list[OpenBatch] = []
        self._commit_point, self._fusions = commit_point, fusions
        self._gap = memoryview(bytearray(work.options.gap_bytes))
        self._hook_arrays: dict[str, np.ndarray[Any, Any]] = {}

    def run(self) -> None:
        """Run the load; an error says which variables have new values."""
        try:
            if self._schedule.read_first:
                with self._lanes() as lanes:
                    finished = self._read(lanes)
                self._read_hooks()
                converted = list(self._converted())
                with self._commit_point:
                    self._run_hooks()
                    self._assign_converted(converted)
                    self._assign(finished)
                    self._finish()
            else:
                # Lanes are opened first, so that a device that fails does so before anything changes.
                with self._lanes() as lanes:
                    self._run_hooks()
                    self._assign_converted(self._converted())
                    self._assign(self._read(lanes))
                self._opened.check_unchanged()
                self._finish()
        except BaseException as error:
            self._journal.take_back()
            if isinstance(error, FastAssignError):
                self._work.origin.name_in(error)
            name_state(error, tuple(self._journal.assigned), self._journal.total)
            # A caller that keeps the error would keep the memory.
            for batch in self._batches:
                batch.release()
            raise

    def _finish(self) -> None:
        if self._session is None:
            for finalize in self._work.matching.finalizers:
                finalize()
        else:
            # In a graph a layer derives tensors from its weights by ops that read them: nothing has to be renewed.
            mark_initialized(self._session, self._work.matching.targets)

    # Batches.

    @contextmanager
    def _lanes(self) -> Iterator[OpenLanes]:
        with OpenLanes(self._work) as lanes:
            self._journal.fallbacks += lanes.fallbacks
            yield lanes

    def _read(self, lanes: OpenLanes) -> list[OpenBatch]:
        """Read all batches, and assign each when it is read, unless everything is read first; return the others."""
        schedule, journal = self._schedule, self._journal
        sizes = {"": schedule.window_bytes, **{lane.device: lane.window_bytes for lane in schedule.lanes}}
        windows = Windows(schedule.batches, None if schedule.read_first else sizes)
        open_batches: dict[int, OpenBatch] = {}
        finished: list[OpenBatch] = []
        with self._past_the_cache(), Workers(schedule.threads) as workers:
            while windows:
                admitted = [(number, self._open(batch, lanes)) for number, batch in windows.admit()]
                self._batches += [opened for _, opened in admitted]
                for number, opened in admitted:
                    opened.locate()
                    for job in opened.jobs(self._source, self._gap, self._opened.decode):
                        workers.submit(number, job)
                        opened.unread += 1
                    if opened.unread:
                        open_batches[number] = opened
                    else:
                        windows.close(opened.batch)
                        finished.append(opened)
                if open_batches:
                    waiting = time.perf_counter()
                    number = workers.collect()
                    journal.seconds["wait"] += time.perf_counter() - waiting
                    opened = open_batches[number]
                    opened.unread -= 1
                    if not opened.unread:
                        windows.close(opened.batch)
                        finished.append(open_batches.pop(number))
                        journal.read_bytes += opened.batch.nbytes
                        if schedule.read_first:
                            journal.tell()
                self._commit_point.check()
                if not schedule.read_first:
                    self._assign(finished)
        return finished

    @contextmanager
    def _past_the_cache(self) -> Iterator[None]:
        """Open the file past the page cache too, if that was asked for."""
        if not (self._work.options.device.direct_io and any(b.route == "direct" for b in self._schedule.batches)):
            yield
            return
        try:
            file = UnbufferedFile(self._opened.descriptor)
        except OSError as error:
            self._journal.fallbacks.append(f"direct_io: {error}: the file was read through the page cache")
            yield
            return
        with file:
            self._unbuffered = self._work.runtime.make_source(file)
            yield

    def _open(self, batch: Batch, lanes: OpenLanes) -> OpenBatch:
        if self._session is not None:
            return FedBatch(batch, self._session, self._work.runtime.arenas)
        if batch.lane:
            lane = lanes[batch.lane]
            if batch.route == "direct":
                return DirectBatch(batch, lane, self._unbuffered)
            return SlabBatch(batch, lane, self._fusions)
        if batch.route == "fused":
            return FusedBatch(self._fusions.of(batch))
        return EagerBatch(batch)

    def _assign(self, finished: list[OpenBatch]) -> None:
        if not finished:
            return
        self._opened.check_unchanged()
        begin = time.perf_counter()
        for opened in finished:
            opened.settle()
            opened.assign(self._journal)
        finished.clear()
        self._journal.seconds["assign"] += time.perf_counter() - begin

    # Hooks.

    def _read_hooks(self) -> None:
        """Read the arrays that hooks will ask for, so that nothing is read while variables change."""
        for record in self._work.matching.hook_records:
            self._commit_point.check()
            self._hook_arrays[record.key] = self._read_array(record)
        self._opened.check_unchanged()

    def _run_hooks(self) -> None:
        journal, matching = self._journal, self._work.matching
        journal.rollback, names, failures = hooks.run_hooks(
            matching, self._read_array, skip_mismatch=self._work.skip_mismatch
        )
        if names:
            journal.assigned += names
            journal.enter("hook", names)
        journal.failures += failures
        _tell_user(matching, journal.failures)

    # Conversions.

    def _converted(self) -> Iterator[Converted]:
        """Compute one value after the other, each when it is asked for."""
        for conversion in self._work.matching.conversions.values():
            self._commit_point.check()
            made = convert(conversion, self._read_array, self._work.runtime.arenas)
            self._opened.check_unchanged()
            yield made
            del made  # free its memory before the next is computed

    def _assign_converted(self, converted: Iterable[Converted]) -> None:
        for made in converted:
            made.assign(self._journal, self._session)
            del made

    def _read_array(self, record: TensorRecord) -> np.ndarray[Any, Any]:
        known = self._hook_arrays.pop(record.key, None)
        if known is not None:
            return known
        array = np.empty(record.shape, dtype=numpy_dtype(record.dtype))
        if record.encoding == "h5py":
            self._opened.decode(record, array)
            return array
        view, start = memory.as_bytes(array), 0
        for extent in record.extents:
            fill(self._source, [view[start : start + extent.nbytes]], extent.offset, extent.nbytes)
            start += extent.nbytes
        return array


def _tell_user(matching: Matching, failures: list[Failure]) -> None:
    """Give Keras' own warnings, now that it is known which objects failed in their own methods."""
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
