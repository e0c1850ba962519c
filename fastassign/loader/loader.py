"""Repeated loads into one model: the index, matching and plan of the first serve the next."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from operator import is_
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from fastassign.catalog.catalog import Catalog
from fastassign.errors import FastAssignError
from fastassign.gc_pause import gc_paused
from fastassign.loader.background import Background, LoadFuture
from fastassign.loader.fingerprint import Fingerprint
from fastassign.matching.match import choose_layout
from fastassign.options import LoadOptions
from fastassign.pipeline import LoadSpec, request_of
from fastassign.plan import Plan
from fastassign.progress import Callback, reporting
from fastassign.report import Report
from fastassign.targets.discover import discover

if TYPE_CHECKING:
    from typing_extensions import Self

    from fastassign.assigning.commit import CommitPoint
    from fastassign.assigning.host.fused import Fusions


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A plan that is kept for the next load, and the conditions under which it holds.

    Attributes
    ----------
    plan : Plan
        The plan.
    fingerprint : Fingerprint
        The fingerprint of the file that it was made for.
    identity : list
        The layers and variables of the model that it was made for.
    session : tf.compat.v1.Session or None
        The session that it was made for.
    fusions : Fusions
        The functions that its executions made.
    """

    plan: Plan
    fingerprint: Fingerprint
    identity: list[Any]
    session: Any
    fusions: Fusions


class Loader:
    """Loads files into one model repeatedly, for example in a server that swaps weights while it runs.

    Index, matching and plan are kept: to load a file of the same structure takes only its reads and assignments. Files
    have the same structure if all their bytes outside the tensors are equal. For a file that differs there a new plan
    is made, and the report says so (``Report.plan``). A new plan is also made if the model's layers or variables have
    changed, or their trainable flags.

    Threads: every method may be called from any thread; loads of one loader run one after the other. The model may be
    used all the while: each variable changes at once from its old value to the new one, and is never torn. A call of
    the model during the change may see old variables beside new ones. With ``LoadOptions(swap="together")`` a call that
    holds ``loader.lock`` does not.

    Parameters
    ----------
    model : keras.Model, tf_keras.Model, or mapping or sequence of variables
        The model, as for ``fastassign.load_weights``.
    by_name, skip_mismatch, objects_to_skip, session
        As for ``fastassign.load_weights``.
    lock : context manager, optional
        The lock that a load with ``LoadOptions(swap="together")`` holds while variables change; by default a new
        ``threading.RLock``.
    options : LoadOptions, optional
        All other options.

    Attributes
    ----------
    lock : context manager
        The lock.

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
        discover(model)  # raises now, not at the first load, if this is not a model
        self._spec = LoadSpec(
            model=model,
            request=request_of(by_name=by_name, skip_mismatch=skip_mismatch, objects_to_skip=objects_to_skip),
            options=self._options,
            session=session,
            repeated=True,
        )
        self._kept: _Kept | None = None
        # Reentrant: a method that is called from inside a load finds that out, instead of waiting for it for ever.
        self._loading = threading.RLock()
        self._is_loading = False
        self._background = Background(self)

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

        As in ``fastassign.load_weights``, memory is bounded, and variables change while the rest is read; with
        ``swap="together"`` all change at the end.

        Returns
        -------
        Report
            The report; its ``plan`` says whether the plan of the previous load was used again.

        Raises
        ------
        Mismatch, Unreadable, Malformed, Truncated, ReadFailed, Changed, Refused, Budget, NoSession
            As for ``fastassign.load_weights``.
        RuntimeError
            The loader is closed, or the call came from a callback of one of its loads.
        """
        return self._load(path, self._commit_point(), progress, self._session(), read_first=self._reads_first)

    def load_async(self, path: str | os.PathLike[str]) -> LoadFuture:
        """Load a file in the background.

        Everything is read before the first variable changes, which takes host memory of the size of all weights. An
        error that ``load`` would raise is raised by ``result()``. A session, if one is needed, is found in the calling
        thread.

        Returns
        -------
        LoadFuture
            A future with ``result()``, ``progress`` and ``cancel()``.

        Raises
        ------
        RuntimeError
            The loader is closed.
        """
        commit_point = self._commit_point()
        future = LoadFuture(path, commit_point)
        self._check_open()
        try:
            session = self._session()
        except FastAssignError as error:
            future.set_exception(error)
            return future
        self._background.submit(
            future, lambda progress: self._load(path, commit_point, progress, session, read_first=True)
        )
        return future

    def close(self) -> None:
        """Cancel the loads that have not begun to change variables, wait for the rest, and drop the plan.

        Raises
        ------
        RuntimeError
            The call came from a callback of one of the loader's loads.
        """
        if self._is_inside():
            raise RuntimeError("a loader can't be closed from a callback of its own load")
        self._background.close()
        with self._loading:
            self._kept = None

    # One load.

    def _commit_point(self) -> CommitPoint:
        from fastassign.assigning.commit import CommitPoint  # imports TensorFlow

        return CommitPoint(self._held)

    def _is_inside(self) -> bool:
        """Whether this very thread is running a load of this loader."""
        if not self._loading.acquire(blocking=False):
            return False
        try:
            return self._is_loading
        finally:
            self._loading.release()

    def _check_open(self) -> None:
        if self._background.is_closed:
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
        from fastassign.assigning.execute import execute  # imports TensorFlow

        with self._loading:
            if self._is_loading:
                raise RuntimeError("a loader can't load from a callback of its own load")
            commit_point.check()
            self._check_open()
            kept, remark = self._plan(path, session)
            plan, fusions = kept.plan.reading_first() if read_first else kept.plan, kept.fusions
            self._is_loading = True
            try:
                with reporting(progress) as callback:
                    report = execute(plan, callback, commit_point=commit_point, fusions=fusions)
                return replace(report, plan=remark)
            finally:
                self._is_loading = False

    def _plan(self, path: str | os.PathLike[str], session: Any) -> tuple[_Kept, str]:
        """Return the plan for a file, made or kept, and the report's remark on it."""
        begin = time.perf_counter()
        kept, remark = self._kept, "made"
        if kept is not None:
            catalog, remark = self._same(kept, path, session)
            if catalog is not None:
                seconds = MappingProxyType({"index": time.perf_counter() - begin})
                return replace(kept, plan=replace(kept.plan, origin=catalog, seconds=seconds)), remark
        from fastassign.assigning.host.fused import Fusions  # imports TensorFlow

        with gc_paused():
            plan, catalog = replace(self._spec, session=session).plan_file(path)
        self._kept = _Kept(
            plan=plan,
            fingerprint=Fingerprint(catalog),
            identity=discover(self._spec.model).identity(),
            session=session,
            fusions=Fusions(),
        )
        return self._kept, remark

    def _same(self, kept: _Kept, path: str | os.PathLike[str], session: Any) -> tuple[Catalog | None, str]:
        """Return the catalog of a file if the kept plan holds for it, else ``None``, and the report's remark."""
        reason = ""
        targets = discover(self._spec.model)
        if not _identical(targets.identity(), kept.identity):
            reason = "the model's layers, variables, trainable flags or scopes have changed"
        elif session is not kept.session:
            reason = "the session is not the same as before"
        elif "external-link" in self._options.allow:
            reason = "links out of the file are allowed, and their targets may have changed"
        elif choose_layout(targets, Path(path), self._spec.request) != kept.plan.matching.layout:
            reason = "the file's format differs from that of the file before"
        elif not kept.fingerprint.is_known:
            reason = "the weights of the file before were compressed"
        catalog = None if reason else kept.fingerprint.reopen(path)
        if catalog is not None:
            return catalog, "kept"
        return None, f"made again: {reason or 'the structure of the file differs from that of the file before'}"

    def _session(self) -> Any:
        """Return the TensorFlow 1 session that this thread would run; another thread might not find it."""
        from fastassign.targets.session import find_session
        from fastassign.targets.variables import any_target, may_use_handles

        kept, handles = self._kept, may_use_handles()
        if kept is not None:
            targets = kept.plan.matching.targets
        else:
            parts = discover(self._spec.model).identity()
            variables = [part for part in parts if hasattr(part, "assign") and hasattr(part, "shape")]
            targets = [any_target(variable, (), handles=handles) for variable in variables]
        if not targets or targets[0].graph is None:  # eager, as nearly all variables are
            return self._spec.session
        return find_session(self._spec.session, targets)


def _identical(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))
