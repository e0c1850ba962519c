"""The rate from the page cache, and on to a device: the upper limit (roof) of the route ``"direct"``."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fastassign.benchmarks.device.card import Card
from fastassign.benchmarks.device.copies import CopySizes, Landing, leased, opened, rated
from fastassign.devices.staging import StagingBuffer

# Slots beyond one a thread, as many as the library has: filled ones are copied while threads fill others.
_SPARE_SLOTS = 2


def read_seconds(path: Path, leases: Sequence[StagingBuffer], threads: int, piece: int) -> float:
    """Read a file into slots, each thread into its own, and return seconds."""

    def consume(number: int, start: int, count: int, descriptor: int) -> None:
        read(descriptor, leases[number].memory.data[:count], start)

    return spread(path, threads, piece, consume)


def spread(path: Path, threads: int, piece: int, consume: Callable[[int, int, int, int], None]) -> float:
    """Have threads consume the pieces of a file, and return seconds."""
    size = path.stat().st_size
    starts = iter(range(0, size, piece))
    lock = threading.Lock()
    descriptor = os.open(path, os.O_RDONLY)

    def work(number: int) -> None:
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            consume(number, start, min(piece, size - start), descriptor)

    try:
        with ThreadPoolExecutor(threads) as pool:
            # Start all threads before the clock runs.
            list(pool.map(lambda _: time.sleep(0.005), range(threads)))
            begin = time.perf_counter()
            for done in [pool.submit(work, number) for number in range(threads)]:
                done.result()
            return time.perf_counter() - begin
    finally:
        os.close(descriptor)


def read(descriptor: int, view: memoryview, start: int) -> None:
    """Fill memory from a file."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], start + done)
        if not count:
            raise EOFError("the file is shorter than it was")
        done += count


def read_rate(card: Card, sizes: CopySizes, path: Path, threads: int) -> dict[str, Any]:
    """Measure the page cache: a file into page-locked slots."""
    piece = sizes.slot_bytes[0]
    with leased(card, threads, piece) as leases:
        read_seconds(path, leases, threads, piece)
        runs = [read_seconds(path, leases, threads, piece) for _ in range(sizes.repeats)]
    return rated(path.stat().st_size, runs)


class Roof:
    """The roof of the route ``"direct"``: the file through page-locked slots to the device, and nothing else.

    Parameters
    ----------
    card : Card
        The device.
    path : pathlib.Path
        The file.
    threads : int
        Threads that read.
    slot_bytes : int
        Bytes of a slot.
    leases : sequence of StagingBuffer
        The slots' memory, which the caller takes back.
    """

    def __init__(
        self, card: Card, path: Path, *, threads: int, slot_bytes: int, leases: Sequence[StagingBuffer]
    ) -> None:
        self._card, self._path, self._threads, self._slot_bytes = card, path, threads, slot_bytes
        self._leases = leases
        self._landing = Landing(card, min(max(path.stat().st_size, slot_bytes), 1 << 30))

    def seconds(self) -> float:
        """Send the file once; return seconds, the last wait included."""
        free: SimpleQueue[tuple[StagingBuffer, Any]] = SimpleQueue()
        for lease in self._leases:
            free.put((lease, None))
        with opened(self._card) as stream:

            def consume(number: int, start: int, count: int, descriptor: int) -> None:
                del number
                # First in, first out: this is the slot with the oldest copy.
                lease, fence = free.get()
                try:
                    if fence is not None:
                        fence.wait()
                    fence = None
                    read(descriptor, lease.memory.data[:count], start)
                    with stream:
                        stream.copy(self._landing.at(start, count), lease.address, count)
                        fence = stream.record()
                finally:
                    free.put((lease, fence))

            seconds = spread(self._path, self._threads, self._slot_bytes, consume)
            begin = time.perf_counter()
            with stream:
                end = stream.record()
            end.wait()
            return seconds + time.perf_counter() - begin


@contextmanager
def roofs(card: Card, path: Path, *, threads: int, slot_bytes: int) -> Iterator[Roof]:
    """Return a roof with slots of its own."""
    with leased(card, threads + _SPARE_SLOTS, slot_bytes) as leases:
        yield Roof(card, path, threads=threads, slot_bytes=slot_bytes, leases=leases)


def roof_rate(card: Card, sizes: CopySizes, path: Path, threads: int, slot_bytes: int) -> dict[str, Any]:
    """Measure the roof for a file."""
    with roofs(card, path, threads=threads, slot_bytes=slot_bytes) as roof:
        roof.seconds()
        runs = [roof.seconds() for _ in range(sizes.repeats)]
    return rated(path.stat().st_size, runs)
