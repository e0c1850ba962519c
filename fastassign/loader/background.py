"""Loads in the background: one thread, and a future for each load."""

from __future__ import annotations

import os
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from fastassign.errors import Cancelled
from fastassign.progress import Callback, ProgressEvent
from fastassign.report import Report

if TYPE_CHECKING:
    from fastassign.assigning.commit import CommitPoint

_Task = Callable[[], None]

# Gets a callback for its progress, and returns the report.
Load = Callable[[Callback], Report]


class LoadFuture(Future[Report]):
    """A load in the background; returned by ``Loader.load_async``.

    It is a ``concurrent.futures.Future`` whose result is a ``Report``, so ``concurrent.futures.wait`` and
    ``asyncio.wrap_future`` accept it.

    Attributes
    ----------
    path : str
        The path of the file.
    progress : ProgressEvent or None
        The latest progress of the load; ``None`` until the first bytes have arrived.
    commit_point : CommitPoint
        The point at which variables begin to change: until then the load can be cancelled.
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
            ``True`` if the load will stop: ``result()`` then raises ``Cancelled``. ``False`` if variables have begun
            to change, which takes milliseconds, or if the load is over.
        """
        return not self.done() and self.commit_point.close()

    def cancelled(self) -> bool:
        """Whether the load was stopped."""
        return self.done() and isinstance(self.exception(), Cancelled)

    def fulfil(self, load: Load) -> None:
        """Run the load, and make its report or its error the result."""
        self.set_running_or_notify_cancel()
        try:
            report = load(partial(setattr, self, "progress"))
        except BaseException as error:  # noqa: BLE001 - for the thread that asks for the result
            # The error keeps its frames, and they would keep the buffers.
            traceback.clear_frames(error.__traceback__)
            if self.commit_point.is_closed and not isinstance(error, Cancelled):
                cancelled = Cancelled("the load was cancelled; no variable was changed", file=self.path)
                cancelled.__cause__ = error
                self.set_exception(cancelled)
            else:
                self.set_exception(error)
        else:
            self.set_result(report)


class Background:
    """A thread that runs loads one after the other; the first load starts it. May be used from any thread.

    Parameters
    ----------
    owner : object
        The object that the thread serves: it ends when this object is gone, even if ``close`` was never called.
    """

    def __init__(self, owner: object) -> None:
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._pending: set[LoadFuture] = set()
        self._state = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._owner = weakref.ref(owner)

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more loads."""
        return self._is_closed

    def submit(self, future: LoadFuture, load: Load) -> None:
        """Run a load after those before it.

        Raises
        ------
        RuntimeError
            No more loads are taken.
        """
        with self._state:
            if self._is_closed:
                raise RuntimeError("this loader is closed")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_work, args=(self._queue,), name="fastassign-loader", daemon=True
                )
                self._thread.start()
                owner = self._owner()
                if owner is not None:
                    weakref.finalize(owner, self._queue.put, None)
            self._pending.add(future)
            self._queue.put(partial(self._run, future, load))

    def close(self) -> None:
        """Cancel the loads that have not begun to change variables, and wait for the rest."""
        with self._state:
            self._is_closed = True
            for future in self._pending:
                future.cancel()
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():  # a future's callback may close the loader
                thread.join()

    def _run(self, future: LoadFuture, load: Load) -> None:
        future.fulfil(load)
        with self._state:
            self._pending.discard(future)


def _work(queue: SimpleQueue[_Task | None]) -> None:
    """Run tasks until a ``None`` comes; between tasks this thread keeps no loader alive."""
    while (task := queue.get()) is not None:
        task()
        del task
