"""Copies to a device through the driver alone; TensorFlow only provides the memory there."""

from __future__ import annotations

import mmap
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastassign.assigning.device import tensors
from fastassign.benchmarks.device.card import Card
from fastassign.devices.staging import Locker, StagingBuffer, StagingPool

_MiB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CopySizes:
    """Sizes of copies and reads, and how often they are measured.

    Attributes
    ----------
    total_bytes : int
        Bytes of one measurement, and of the file that is read.
    slot_bytes : tuple of int
        Sizes of a copy; the first is the default of the options.
    slots : int
        Slots of a ring.
    threads : tuple of int
        Numbers of reading threads.
    lock_bytes : int
        Memory to page-lock at once.
    repeats : int
        Runs behind each median.
    """

    total_bytes: int = 2 << 30
    slot_bytes: tuple[int, ...] = (8 * _MiB, 1 * _MiB, 2 * _MiB, 4 * _MiB, 16 * _MiB, 32 * _MiB)
    slots: int = 8
    threads: tuple[int, ...] = (1, 4, 8, 16)
    lock_bytes: int = 1 << 30
    repeats: int = 5


class Landing:
    """Memory of a device that copies go to, again and again.

    Parameters
    ----------
    card : Card
        The device.
    nbytes : int
        Its size.
    """

    def __init__(self, card: Card, nbytes: int) -> None:
        self.nbytes = nbytes
        self._tensor = tensors.empty((nbytes,), "uint8", card.name)
        self._address = tensors.address(self._tensor, card.name)

    def at(self, offset: int, nbytes: int) -> int:
        """Return the address for bytes from an offset of the source."""
        room = self.nbytes - nbytes
        return self._address + (offset % room // 64 * 64 if room > 0 else 0)


@contextmanager
def leased(card: Card, count: int, nbytes: int, *, locked: bool = True) -> Iterator[list[StagingBuffer]]:
    """Lend host memory, made as the library makes it, and return it to the system afterwards."""
    pool = StagingPool()
    locker = Locker(card.driver, card.ordinal) if locked else None
    leases: list[StagingBuffer] = []
    try:
        for _ in range(count):
            leases.append(pool.lease(nbytes, owner="a measurement", locker=locker, limit_bytes=1 << 40))
            leases[-1].memory[:: mmap.PAGESIZE] = 1
        yield leases
    finally:
        for lease in leases:
            lease.give_back()
        pool.release()


def copy_seconds(card: Card, stream: Any, sources: Sequence[int], piece: int, total: int, landing: Landing) -> float:
    """Copy pieces from host memory, again and again, and return the seconds by the device's clock."""
    with stream:
        first = stream.record(timed=True)
        for i in range(max(total // piece, 1)):
            stream.copy(landing.at(i * piece, piece), sources[i % len(sources)], piece)
        last = stream.record(timed=True)
    first.wait()
    last.wait()
    return float(last.seconds_since(first))


@contextmanager
def opened(card: Card) -> Iterator[Any]:
    """Return a stream that is closed afterwards."""
    stream = card.driver.stream(card.ordinal)
    try:
        yield stream
    finally:
        with stream:
            end = stream.record()
        end.wait()
        stream.close()


def copy_rate(card: Card, sizes: CopySizes, piece: int, *, locked: bool) -> dict[str, Any]:
    """Measure copies of one size from a ring of slots."""
    landing = Landing(card, sizes.slots * piece)
    with leased(card, sizes.slots, piece, locked=locked) as leases, opened(card) as stream:
        sources = [lease.address for lease in leases]
        copy_seconds(card, stream, sources, piece, piece * len(sources), landing)
        runs = [copy_seconds(card, stream, sources, piece, sizes.total_bytes, landing) for _ in range(sizes.repeats)]
    return rated(sizes.total_bytes // piece * piece, runs)


def rated(nbytes: int, runs: Sequence[float]) -> dict[str, Any]:
    """Return the median of the runs, its rate in GB/s (1e9 bytes), and the runs."""
    seconds = statistics.median(runs)
    return {"nbytes": nbytes, "seconds": seconds, "gbps": nbytes / seconds / 1e9, "runs": list(runs)}
