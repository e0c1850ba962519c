"""The findings of ``fastassign doctor``: versions, devices, rates, the cache, the way to a GPU."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fastassign.benchmarks.device import card as cards
from fastassign.benchmarks.limits.roofline import Limit
from fastassign.benchmarks.machine import usable_cores, versions
from fastassign.catalog import index_cache
from fastassign.devices.driver import Missing
from fastassign.errors import NotPageLocked
from fastassign.options import LoadOptions
from fastassign.runtime import process_runtime

_PROBE_BYTES = 256 << 20

# Packages that the way to a GPU needs.
_PACKAGES = ("cuda-bindings", "numba-cuda")


def checks(folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield the name of each check and its finding, one at a time as they are measured.

    Parameters
    ----------
    folder : pathlib.Path, optional
        The folder for a probe file of 256 MB, to measure the storage rate; by default the system's temporary folder.
    """
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions().items())
    yield "tensorflow", _tensorflow()
    threads = f"{LoadOptions().threads} threads read, {LoadOptions().device.threads} if weights go to a GPU"
    yield "cores", f"{usable_cores()} usable; {threads}"
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
    yield from _gpu()


def _gpu() -> Iterator[tuple[str, str]]:
    """Yield the findings about the way to a GPU; a single one if there is no driver."""
    driver = process_runtime().find_driver()
    if isinstance(driver, Missing):
        missing = cards.unopened("libcuda.so.1")
        if missing:
            yield "gpu", f"no NVIDIA driver is installed ({missing})"
            return
        cost = "values go through TensorFlow's own copies, one transfer for each variable"
        yield "gpu", f"can't be reached: {driver.reason}. Therefore {cost}. To change that: {driver.hint}"
    yield "gpu packages", _packages()
    yield "locked memory", f"at most {cards.locked_memory_limit()} (ulimit -l)"
    try:
        yield from _card()
    except Exception as error:  # noqa: BLE001 - any error is a finding
        yield "gpu", f"{type(error).__name__}: {error}"


def _packages() -> str:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is missing (pip install fastassign[cuda])")
    return "; ".join(found)


def _card() -> Iterator[tuple[str, str]]:
    """Yield the first card that TensorFlow sees, and the rates to it; or the reason why it sees none."""
    try:
        import tensorflow as tf
    except ImportError:
        return  # reported already
    if not tf.config.list_logical_devices("GPU"):
        yield "gpu", f"TensorFlow sees none: {cards.why_unseen()}"
        return
    if isinstance(process_runtime().find_driver(), Missing):
        return  # reported already
    card = cards.find_card("gpu")
    about = cards.describe(card)
    names = ("name", "compute_capability", "memory_bytes", "bus_id", "pcie_generation", "pcie_width")
    yield "gpu", ", ".join(f"{name.replace('_', ' ')} {about[name]}" for name in names if name in about)
    yield (
        "gpu driver",
        f"{about.get('driver_version', 'version unknown')}, CUDA {about.get('cuda_of_driver', 'unknown')}",
    )
    missing = card.driver.kernels_missing()
    yield (
        "gpu kernels",
        f"{missing}. Therefore values are cast on the host, one variable at a time" if missing else "run (numba)",
    )
    yield "host to device", _transfer(card)


def _transfer(card: cards.Card) -> str:
    """Measure copies from page-locked memory, and from memory that is not."""
    from fastassign.benchmarks.device.copies import CopySizes, copy_rate

    piece = LoadOptions().device.slot_bytes
    sizes = CopySizes(total_bytes=max(_PROBE_BYTES, piece), slots=4, repeats=3)
    texts = []
    for name, locked in (("page-locked", True), ("pageable", False)):
        try:
            texts.append(f"{copy_rate(card, sizes, piece, locked=locked)['gbps']:.1f} GB/s {name}")
        except NotPageLocked as error:
            texts.append(f"{name}: {error} ({error.hint})")
    return ", ".join(texts)


def _tensorflow() -> str:
    try:
        import tensorflow as tf
    except ImportError as error:
        return f"not installed ({error}): pip install fastassign[tensorflow], or fastassign[tensorflow-cpu]"
    devices = [device.name for device in tf.config.list_logical_devices()]
    built = "built with CUDA" if tf.test.is_built_with_cuda() else "built without CUDA"
    return f"{tf.__version__}, {built}, sees {', '.join(devices)}"


def _storage(descriptor: int, path: Path) -> str:
    if not hasattr(os, "posix_fadvise"):
        return "unknown: this system can't drop a file from its page cache"
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
        return "off (by FASTASSIGN_CACHE)"
    entries = list(folder.glob("*.json")) if folder.is_dir() else []
    size = sum(entry.stat().st_size for entry in entries)
    return f"{folder}: {len(entries)} entries, {size:,} bytes"
