"""Threads that do the reading while the calling thread assigns.

Not a ``concurrent.futures`` pool: jobs come back in the order in which they end, a job costs 3 microseconds
instead of 30, stopping does not wait for what has not begun, and the calling thread does jobs itself while it
has nothing else to do. With more threads than cores the one that assigns loses its core at every system call: on
2 cores ResNet152 took 103 ms with two threads, 109 with three, 123 with four.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType

Job = Callable[[], None]


class Workers:
    """A few threads that run jobs until they are stopped.

    Owned by one thread: it submits, and helps while it collects.

    Parameters
    ----------
    count : int
        Threads, the owner included.
    """

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[tuple[int, Job] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, BaseException | None]] = SimpleQueue()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"fastassign-reader-{i}", daemon=True) for i in range(count - 1)
        ]

    def __enter__(self) -> Workers:
        """Start the threads."""
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # Ctrl-C comes at any time
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the workers; buffers that jobs were filling are free afterwards."""
        self.stop()

    def submit(self, tag: int, job: Job) -> None:
        """Queue a job; ``tag`` comes back from ``collect``."""
        self._jobs.put((tag, job))

    def collect(self) -> int:
        """Return the tag of a job that ended, doing one if none has; raise what it raised."""
        try:
            tag, error = self._done.get_nowait()
        except Empty:
            job = self._take()
            if job is not None:
                job[1]()
                return job[0]
            tag, error = self._done.get()
        if error is not None:
            try:
                raise error
            finally:
                del error  # in a circle with its traceback it would keep what the load has open
        return tag

    def _take(self) -> tuple[int, Job] | None:
        try:
            return self._jobs.get_nowait()
        except Empty:
            return None

    def stop(self) -> None:
        """Drop the jobs that have not begun, wait for those that have."""
        self._stopped = True
        self._jobs.put(None)
        # One that Ctrl-C interrupted while it was started may run without a sign of it: it can't be waited for, finds
        # no job, and ends.
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        # Errors that nobody collected hold what their threads stood in, this object included.
        self._done = SimpleQueue()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            if self._stopped:
                continue
            tag, job = item
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - handed to the thread that collects
                self._done.put((tag, error))
            else:
                self._done.put((tag, None))
        self._jobs.put(None)  # for the next one
