"""The highest rates of the way to a device, and the cost of page-locking the memory on it."""

from __future__ import annotations

import ctypes
import mmap
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastassign.benchmarks.device.card import Card
from fastassign.benchmarks.device.copies import CopySizes, Landing, copy_rate, copy_seconds, opened, rated
from fastassign.benchmarks.device.roof import read, read_rate, roof_rate, spread
from fastassign.benchmarks.steps import Steps
from fastassign.devices.cuda import CurrentContext

HEAD = ("limit", "how", "GB/s", "s", "lock s/GB", "read GB/s")

_MiB = 1 << 20


def measure_limits(card: Card, folder: Path, sizes: CopySizes, steps: Steps) -> list[dict[str, Any]]:
    """Measure all limits.

    Parameters
    ----------
    card : Card
        The device.
    folder : pathlib.Path
        The folder for a file of ``sizes.total_bytes``, which is removed.
    sizes : CopySizes
        Sizes of the copies.
    steps : Steps
        Runs each measurement on its own.

    Returns
    -------
    list of dict
        ``limit`` and ``how`` of each, and its figures, or its error.
    """
    first, *others = sizes.slot_bytes
    most = sizes.threads[-1]
    path = folder / "limits.bin"
    plan: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
        ("pinned", _size(first), partial(copy_rate, card, sizes, first, locked=True)),
        ("pageable", _size(first), partial(copy_rate, card, sizes, first, locked=False)),
        *(("pinned, copies of", _size(piece), partial(copy_rate, card, sizes, piece, locked=True)) for piece in others),
        ("a file for the next", "", partial(_write, path, sizes.total_bytes)),
        *(("page cache", _threads(n), partial(read_rate, card, sizes, path, n)) for n in sizes.threads),
        *(("roof", _threads(n), partial(roof_rate, card, sizes, path, n, first)) for n in sizes.threads),
        *(
            ("roof, slots of", f"{_size(piece)}, {_threads(most)}", partial(roof_rate, card, sizes, path, most, piece))
            for piece in others
        ),
        *(
            ("page-locking", name, partial(_lock_costs, card, sizes, path, make))
            for name, make in (
                ("mmap, huge pages", partial(_registered, huge=True)),
                ("mmap", partial(_registered, huge=False)),
                ("mmap, huge, touched", partial(_registered, huge=True, touched=True)),
                ("mmap, touched", partial(_registered, huge=False, touched=True)),
                ("cuMemHostAlloc", _allocated),
            )
        ),
    ]
    try:
        return [
            {"limit": name, "how": how, **steps.run(f"limits: {name} {how}".rstrip(), action)}
            for name, how, action in plan
        ]
    finally:
        path.unlink(missing_ok=True)


def _size(nbytes: int) -> str:
    return f"{nbytes / _MiB:g} MiB"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _write(path: Path, nbytes: int) -> dict[str, Any]:
    piece = np.random.default_rng(0).bytes(_MiB)
    begin = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(max(nbytes // _MiB, 1)):
            file.write(piece)
    seconds = time.perf_counter() - begin
    size = path.stat().st_size
    return {"nbytes": size, "seconds": seconds, "gbps": size / seconds / 1e9}


def rows_of(limits: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return limits as cells of ``HEAD``."""
    rows: list[tuple[str, ...]] = []
    for limit in limits:
        locking = ("", "")
        if "lock_seconds_per_gb" in limit:
            seconds = limit["lock_seconds_per_gb"] + limit["touch_seconds_per_gb"]
            locking = (f"{seconds:.3f}", f"{limit['read_gbps']:.1f}")
        rate = "FAILED" if "error" in limit else f"{limit['gbps']:.2f}"
        rows.append((limit["limit"], limit["how"], rate, f"{limit.get('seconds', 0):.4f}", *locking))
    return rows


@dataclass(slots=True)
class _Locked:
    """Page-locked memory, the seconds that it took to make, and a function that frees it."""

    array: np.ndarray[Any, Any]
    touch_seconds: float
    lock_seconds: float
    unlock: Callable[[], None]


def _registered(card: Card, nbytes: int, *, huge: bool, touched: bool = False) -> _Locked:
    """Map memory and page-lock it."""
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel that was built without huge pages refuses both
            pages.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(pages, dtype=np.uint8)
    begin = time.perf_counter()
    if touched:
        array[:: mmap.PAGESIZE] = 1
    middle = time.perf_counter()
    address = int(array.ctypes.data)
    card.driver.lock(card.ordinal, address, nbytes)
    end = time.perf_counter()
    return _Locked(array, middle - begin, end - middle, partial(card.driver.unlock, card.ordinal, address))


def _allocated(card: Card, nbytes: int) -> _Locked:
    """Let the driver allocate page-locked memory."""
    driver = card.driver
    current = CurrentContext(driver, card.ordinal)
    begin = time.perf_counter()
    with current:
        address = int(driver.call("cuMemHostAlloc", nbytes, int(driver.bindings.CU_MEMHOSTALLOC_PORTABLE)))
    seconds = time.perf_counter() - begin

    def free() -> None:
        with current:
            driver.call("cuMemFreeHost", address)

    array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
    return _Locked(array, 0.0, seconds, free)


def _lock_costs(card: Card, sizes: CopySizes, path: Path, make: Callable[[Card, int], _Locked]) -> dict[str, Any]:
    """Measure a way to page-lock memory: its cost, and the rates of copies from it and reads into it."""
    piece, nbytes = sizes.slot_bytes[0], sizes.lock_bytes
    landing = Landing(card, piece * sizes.slots)
    touch, lock, unlock, copies, reads = [], [], [], [], []
    for _ in range(max(sizes.repeats // 2, 1)):
        locked = make(card, nbytes)
        try:
            touch.append(locked.touch_seconds)
            lock.append(locked.lock_seconds)
            start = int(locked.array.ctypes.data)
            sources = [start + at for at in range(0, nbytes - piece + 1, piece)]
            with opened(card) as stream:
                copy_seconds(card, stream, sources, piece, nbytes, landing)
                copies.append(copy_seconds(card, stream, sources, piece, nbytes, landing))
            reads.append(_read_into(locked.array, path, sizes.threads[-1], piece))
        finally:
            begin = time.perf_counter()
            locked.unlock()
            unlock.append(time.perf_counter() - begin)
    gigabytes = nbytes / 1e9
    per_gb = {
        f"{name}_seconds_per_gb": statistics.median(runs) / gigabytes
        for name, runs in (("touch", touch), ("lock", lock), ("unlock", unlock))
    }
    size = min(nbytes, path.stat().st_size)
    return {
        **rated(nbytes // piece * piece, copies),
        **per_gb,
        "read_gbps": size / statistics.median(reads) / 1e9,
        "locked_bytes": nbytes,
    }


def _read_into(array: np.ndarray[Any, Any], path: Path, threads: int, piece: int) -> float:
    """Read a file into memory of at most its size, by threads."""

    def consume(number: int, start: int, count: int, descriptor: int) -> None:
        del number
        count = min(count, array.nbytes - start)
        if count > 0:
            read(descriptor, array.data[start : start + count], start)

    return spread(path, threads, piece, consume)
