"""Repeated loads into one model: what the first one found out serves the next ones."""

from __future__ import annotations

import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import is_
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastassign.catalog.catalog import Catalog
from fastassign.errors import Cancelled, FastAssignError
from fastassign.gc_pause import gc_paused
from fastassign.loader.fingerprint import Fingerprint
from fastassign.matching.match import Request, choose_layout
from fastassign.options import LoadOptions
from fastassign.pipeline import LoadSpec
from fastassign.planning.plan import Plan
from fastassign.progress import Callback, ProgressEvent
from fastassign.report import Report
from fastassign.targets.discover import discover
from fastassign.targets.target import Layout

if TYPE_CHECKING:
    from typing_extensions import Self

    from fastassign.assigning.commit import CommitPoint

_Task = Callable[[], None]


class LoadFuture(Future[Report]):
    """A load that runs in the background; made by ``Loader.load_async``.

    A ``concurrent.futures.Future`` with a ``Report`` as its result, so that ``concurrent.futures.wait`` and
    ``asyncio.wrap_future`` take it.

    Attributes
    ----------
    path : str
        The file.
    progress : ProgressEvent or None
        Where the load stands; ``None`` until the first bytes are there.
    commit_point : CommitPoint
        What the load passes before variables change.
    """

    def __init__(self, path: str | os.PathLike[str], commit_point: CommitPoint) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.progress: ProgressEvent | None = None
        self.commit_point = commit_point

    def cancel(self) -> bool:
        """Stop the load before any variable changes.

        Returns
        -------
        bool
            Whether it will stop: ``result()`` then raises ``Cancelled``. ``False`` if variables have begun to change,
            which takes milliseconds, or if it is over.
        """
        return not self.done() and self.commit_point.close()

    def cancelled(self) -> bool:
        """Whether the load was stopped."""
        return self.done() and isinstance(self.exception(), Cancelled)


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What is known of the last load."""

    plan: Plan
    fingerprint: Fingerprint
    layout: Layout
    session: Any
    identity: list[Any]


class Loader:
    """Loads files into one model again and again, as a server does that swaps weights while it runs.

    Index, matching and plan are kept: a file of the same structure costs its bytes and the assignments. Whether it
    has the same structure is told by comparing all of the file that is not tensors with what the plan was made from;
    a file that differs there is planned anew, and the report says so (``Report.plan``). So is a model that has other
    variables or layers than before, or others that are trainable.

    Threads: every method may be called from any thread; loads of one loader run one after the other. The model may be
    used all the while: each variable changes at once, from the old value to the new one, and is never torn. A call of
    the model during the change may see old variables beside new ones; with ``LoadOptions(swap="together")`` it does
    not, if it holds ``loader.lock``.

    Parameters
    ----------
    model : keras.Model, tf_keras.Model, or mapping or sequence of variables
        The model, as for ``fastassign.load_weights``.
    by_name, skip_mismatch, objects_to_skip, session
        As for ``fastassign.load_weights``.
    lock : context manager, optional
        What ``LoadOptions(swap="together")`` holds while variables change; a ``threading.RLock`` of its own if not
        given.
    options : LoadOptions, optional
        Every other knob.

    Attributes
    ----------
    lock : context manager
        See above.

    Examples
    --------
    >>> with fa.Loader(model) as loader:  # doctest: +SKIP
    ...     loader.load("step-1000.weights.h5")
    ...     future = loader.load_async("step-2000.weights.h5")
    ...     report = future.result()
    """

    def __init__(
        self,
        model: Any,
        *,
        by_name: bool = False,
        skip_mismatch: bool = False,
        objects_to_skip: Iterable[Any] | None = None,
        session: Any = None,
        lock: AbstractContextManager[Any] | None = None,
        options: LoadOptions | None = None,
    ) -> None:
        self._options = options or LoadOptions()
        self.lock = threading.RLock() if lock is None else lock
        self._reads_first = self._options.swap == "together"
        self._held: AbstractContextManager[Any] = self.lock if self._reads_first else nullcontext()
        request = Request(
            by_name=by_name,
            skip_mismatch=skip_mismatch,
            objects_to_skip=None if objects_to_skip is None else tuple(objects_to_skip),
        )
        discover(model)  # raises for what is no model now, not at the first load
        self._spec = LoadSpec(model=model, request=request, options=self._options, session=session, repeated=True)
        self._kept: _Kept | None = None
        # Reentrant, to find out who calls a method from inside a load, instead of waiting for it for ever.
        self._loading = threading.RLock()
        self._is_loading = False
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._pending: set[LoadFuture] = set()
        self._state = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        """Return the loader."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the loader."""
        self.close()

    def load(self, path: str | os.PathLike[str], *, progress: bool | Callback | None = None) -> Report:
        """Load a file.

        Memory is bounded as by ``fastassign.load_weights``: variables change while the rest is read (with
        ``swap="together"`` all at the end).

        Returns
        -------
        Report
            Its ``plan`` says whether the plan of the load before was used again.

        Raises
        ------
        Mismatch, Unreadable, Malformed, Truncated, ReadFailed, Changed, Refused, Budget, NoSession
            As ``fastassign.load_weights``.
        RuntimeError
            The loader is closed, or this is a callback of one of its loads.
        """
        return self._load(path, self._commit_point(), progress, self._session(), read_first=self._reads_first)

    def load_async(self, path: str | os.PathLike[str]) -> LoadFuture:
        """Load a file in the background.

        Everything is read before the first variable changes, which takes host memory of the size of all weights.
        Whatever ``load`` would raise comes with the result. The session, where one is needed, is that of the caller.

        Returns
        -------
        LoadFuture
            With ``result()``, ``progress`` and ``cancel()``.

        Raises
        ------
        RuntimeError
            The loader is closed.
        """
        future = LoadFuture(path, self._commit_point())
        with self._state:
            self._check_open()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_work, args=(self._queue,), name="fastassign-loader", daemon=True
                )
                self._thread.start()
                # A loader that nobody closed takes its thread along.
                weakref.finalize(self, self._queue.put, None)
            try:
                session = self._session()
            except FastAssignError as error:
                future.set_exception(error)
                return future
            self._pending.add(future)
            self._queue.put(partial(self._load_for, future, session))
        return future

    def close(self) -> None:
        """Cancel what has not changed variables yet, wait for the rest, and give back what was kept.

        Raises
        ------
        RuntimeError
            This is a callback of one of the loader's loads.
        """
        if self._is_inside():
            raise RuntimeError("a loader can't be closed from a callback of its own load")
        with self._state:
            self._is_closed = True
            for future in self._pending:
                future.cancel()
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():  # a future's callback may close the loader
                thread.join()
        with self._loading:
            self._kept = None

    # One load.

    def _commit_point(self) -> CommitPoint:
        from fastassign.assigning.commit import CommitPoint  # imports TensorFlow

        return CommitPoint(self._held)

    def _is_inside(self) -> bool:
        """Whether a load of this loader is under way in this very thread."""
        if not self._loading.acquire(blocking=False):
            return False
        try:
            return self._is_loading
        finally:
            self._loading.release()

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("this loader is closed")

    def _load(
        self,
        path: str | os.PathLike[str],
        commit_point: CommitPoint,
        progress: bool | Callback | None,
        session: Any,
        *,
        read_first: bool,
    ) -> Report:
        with self._loading:
            if self._is_loading:
                raise RuntimeError("a loader can't load from a callback of its own load")
            commit_point.check()
            self._check_open()
            plan, remark = self._plan(path, session)
            if read_first:
                plan = plan.reading_first()
            if plan.executor is None:
                raise TypeError("the pipeline makes no plan without an executor")
            made = replace(plan, executor=partial(plan.executor, commit_point=commit_point))
            self._is_loading = True
            try:
                return replace(made.execute(progress), plan=remark)
            finally:
                self._is_loading = False

    def _plan(self, path: str | os.PathLike[str], session: Any) -> tuple[Plan, str]:
        begin = time.perf_counter()
        kept, remark = self._kept, "made"
        if kept is not None:
            catalog, remark = self._same(kept, path, session)
            if catalog is not None:
                seconds = {"index": time.perf_counter() - begin}
                return replace(kept.plan, catalog=catalog, seconds=seconds), remark
        with gc_paused():
            plan = replace(self._spec, session=session).plan(path)
        if not isinstance(plan.catalog, Catalog):
            raise TypeError("a file has a catalog")
        self._kept = _Kept(
            plan=plan,
            fingerprint=Fingerprint(plan.catalog),
            layout=self._layout(path),
            session=session,
            identity=discover(self._spec.model).identity(),
        )
        return plan, remark

    def _same(self, kept: _Kept, path: str | os.PathLike[str], session: Any) -> tuple[Catalog | None, str]:
        """Return the catalog of a file for which the plan holds, or none, and what the report says."""
        reason = ""
        if not _identical(discover(self._spec.model).identity(), kept.identity):
            reason = "the model has other layers or variables than before, others are trainable, or they are in a scope"
        elif session is not kept.session:
            reason = "the session is another than before"
        elif "external-link" in self._options.allow:
            reason = "links out of the file are allowed, and what they lead to may be different"
        elif self._layout(path) != kept.layout:
            reason = "the file is of another format than the one before"
        elif not kept.fingerprint.is_known:
            reason = "the weights of the file before were compressed"
        catalog = None if reason else kept.fingerprint.reopen(path)
        if catalog is not None:
            return catalog, "kept"
        return None, f"made again: {reason or 'the file is of another structure than the one before'}"

    def _layout(self, path: str | os.PathLike[str]) -> Layout:
        return choose_layout(discover(self._spec.model), Path(path), self._spec.request)

    def _session(self) -> Any:
        """Return the TensorFlow 1 session that this thread would run: another thread would not find it."""
        from fastassign.targets.session import find_session
        from fastassign.targets.variables import any_target, may_use_handles

        kept, handles = self._kept, may_use_handles()
        if kept is not None:
            targets = kept.plan.matching.targets
        else:
            parts = discover(self._spec.model).identity()
            variables = [part for part in parts if hasattr(part, "assign") and hasattr(part, "shape")]
            targets = [any_target(variable, (), handles=handles) for variable in variables]
        if not targets or targets[0].graph is None:  # eager, as nearly all are
            return self._spec.session
        return find_session(self._spec.session, targets)

    def _load_for(self, future: LoadFuture, session: Any) -> None:
        future.set_running_or_notify_cancel()
        try:
            callback = partial(setattr, future, "progress")
            report = self._load(future.path, future.commit_point, callback, session, read_first=True)
        except BaseException as error:  # noqa: BLE001 - for whoever asks for the result
            # Whoever keeps the future would keep the buffers.
            traceback.clear_frames(error.__traceback__)
            if future.commit_point.is_closed and not isinstance(error, Cancelled):
                cancelled = Cancelled("the load was cancelled; no variable was changed", file=future.path)
                cancelled.__cause__ = error
                future.set_exception(cancelled)
            else:
                future.set_exception(error)
        else:
            future.set_result(report)
        with self._state:
            self._pending.discard(future)


def _work(queue: SimpleQueue[_Task | None]) -> None:
    """Do tasks until there is a ``None``; between tasks this thread keeps no loader alive."""
    while (task := queue.get()) is not None:
        task()
        del task


def _identical(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))
