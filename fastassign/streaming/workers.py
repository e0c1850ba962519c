"""Threads that do the reading while the calling thread assigns.

Not a ``concurrent.futures`` pool: jobs come back in the order in which they end, a job costs 3 microseconds
instead of 30, and stopping does not wait for what has not begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType

Job = Callable[[], None]


class Workers:
    """A few threads that run jobs until they are stopped.

    Owned by one thread: it submits and collects. The jobs run in the workers.

    Parameters
    ----------
    count : int
        Threads.
    """

    def __init__(self, count: int) -> None:
        self._jobs: SimpleQueue[tuple[int, Job] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, BaseException | None]] = SimpleQueue()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._work, name=f"fastassign-reader-{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Workers:
        """Return the workers."""
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
        """Wait for the next job to end and return its tag; raise what it raised."""
        tag, error = self._done.get()
        if error is not None:
            raise error
        return tag

    def stop(self) -> None:
        """Drop the jobs that have not begun, wait for those that have."""
        self._stopped = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

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
