"""What ``fastassign doctor`` tells: versions, devices, rates, the cache."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fastassign.benchmarks.machine import versions
from fastassign.benchmarks.roofline import Limit
from fastassign.catalog import index_cache
from fastassign.options import LoadOptions

_PROBE_BYTES = 256 << 20


def checks(folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield what was looked at and what was found, one at a time as they are measured.

    Parameters
    ----------
    folder : pathlib.Path, optional
        Where the probe file of 256 MB is written for the storage rate; the system's temporary folder if not given.
    """
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions().items())
    yield "tensorflow", _tensorflow()
    yield "cores", f"{len(os.sched_getaffinity(0))} usable, {LoadOptions().threads} threads read"
    with tempfile.NamedTemporaryFile(dir=folder, prefix="fastassign-doctor-") as probe:
        probe.write(os.urandom(1 << 20) * (_PROBE_BYTES >> 20))
        probe.flush()
        os.fsync(probe.fileno())
        limit = Limit(Path(probe.name), threads=LoadOptions().threads)
        limit.warm()
        fresh, warm = limit.fresh(), limit.warm()
        rates = f"{_PROBE_BYTES / warm / 1e9:.1f} GB/s into touched memory, {_PROBE_BYTES / fresh / 1e9:.1f} into fresh"
        yield "page cache", rates
        yield "storage", _storage(probe.fileno(), Path(probe.name))
    yield "index cache", _cache()


def _tensorflow() -> str:
    try:
        import tensorflow as tf
    except ImportError as error:
        return f"not here ({error}); install fastassign[tensorflow] or fastassign[tensorflow-cpu] to load into models"
    devices = [device.name for device in tf.config.list_logical_devices()]
    built = "built with CUDA" if tf.test.is_built_with_cuda() else "built without CUDA"
    return f"{tf.__version__}, {built}, sees {', '.join(devices)}"


def _storage(descriptor: int, path: Path) -> str:
    # The pages are clean after fsync, so the kernel may drop them; not every file system does.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(4 << 20):
            pass
    seconds = time.perf_counter() - begin
    return f"{_PROBE_BYTES / seconds / 1e9:.1f} GB/s after dropping the file from the page cache, one thread"


def _cache() -> str:
    folder = index_cache.folder()
    if folder is None:
        return "off (FASTASSIGN_CACHE)"
    entries = list(folder.glob("*.json")) if folder.is_dir() else []
    size = sum(entry.stat().st_size for entry in entries)
    return f"{folder}: {len(entries)} entries, {size:,} bytes"
