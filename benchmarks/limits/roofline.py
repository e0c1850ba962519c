"""The limit of the machine: reading the same file in parallel into memory, and nothing else."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

PIECE_BYTES = 4 << 20


class Limit:
    """The time that it takes to read a file from the page cache into host memory.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    threads : int
        Threads that read.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        self._path, self._threads = path, threads
        self._size = path.stat().st_size
        self._touched = np.zeros(self._size, dtype=np.uint8)

    def warm(self) -> float:
        """Read into memory that was touched before; return seconds."""
        return self._read(self._touched)

    def fresh(self) -> float:
        """Read into memory that was never touched; return seconds, its page faults included."""
        return self._read(np.empty(self._size, dtype=np.uint8))

    def _read(self, target: np.ndarray[Any, Any]) -> float:
        view = target.data
        starts = iter(range(0, self._size, PIECE_BYTES))
        lock = threading.Lock()
        descriptor = os.open(self._path, os.O_RDONLY)

        def work() -> None:
            while True:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                stop = min(start + PIECE_BYTES, self._size)
                while start < stop:
                    start += os.preadv(descriptor, [view[start:stop]], start)

        begin = time.perf_counter()
        helpers = [threading.Thread(target=work) for _ in range(self._threads - 1)]
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()
        seconds = time.perf_counter() - begin
        os.close(descriptor)
        return seconds
