"""Loads to a device with one option changed at a time: the figures behind the defaults of ``DeviceOptions``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import fastassign
from fastassign.benchmarks.device.card import sync
from fastassign.benchmarks.device.compare import Subject, timed
from fastassign.benchmarks.device.copies import CopySizes, copy_rate
from fastassign.benchmarks.steps import Steps
from fastassign.options import DeviceOptions, LoadOptions
from fastassign.runtime import process_runtime

HEAD = ("options", "load; repeated s", "GB/s", "of pinned")

_MiB = 1 << 20

# Options to change, one after the other; all others have their defaults.
KNOBS: Sequence[Mapping[str, Any]] = (
    *({"threads": count} for count in (1, 2, 4, 8, 12, 16)),
    *({"slot_bytes": size * _MiB} for size in (2, 4, 8, 16, 32)),
    *({"window_bytes": size * _MiB} for size in (64, 128, 256, 512, 1024, 2048)),
    *({"fused_bytes": size} for size in (16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)),
)


def measure_sweep(subject: Subject, sizes: CopySizes, steps: Steps) -> list[dict[str, Any]]:
    """Measure loads of one file under each of ``KNOBS``.

    Parameters
    ----------
    subject : Subject
        The model and its file, which is in the page cache.
    sizes : CopySizes
        Sizes of the copies that the loads are compared with, and the runs behind each median.
    steps : Steps
        Runs each measurement on its own.

    Returns
    -------
    list of dict
        ``options``, and medians in seconds, GB/s and shares of the page-locked rate of ``load`` and ``repeated``; or
        an error.
    """
    nbytes, piece = fastassign.inspect(subject.path).nbytes, sizes.slot_bytes[0]
    pinned = steps.run("sweep: the page-locked rate", lambda: copy_rate(subject.card, sizes, piece, locked=True))
    rows = []
    for knobs in KNOBS:
        found = steps.run(f"sweep: {dict(knobs)}", lambda k=knobs: _changed(subject, k, sizes.repeats))  # type: ignore[misc]
        for kind in ("load", "repeated"):
            if kind in found:
                found[f"{kind}_gbps"] = nbytes / found[kind] / 1e9
                if "gbps" in pinned:
                    found[f"{kind}_share_of_pinned"] = found[f"{kind}_gbps"] / pinned["gbps"]
        rows.append({"options": dict(knobs), **found})
    return rows


def _changed(subject: Subject, knobs: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    process_runtime().staging.release()
    options = LoadOptions(device=DeviceOptions(**knobs))

    def load() -> None:
        fastassign.load_weights(subject.model, subject.path, options=options)
        sync()

    def repeated() -> None:
        loader.load(subject.path)
        sync()

    with fastassign.Loader(subject.model, options=options) as loader:
        # Twice, because a loader makes the things that it keeps in its first load.
        repeated()
        repeated()
        runs = {
            "load": [timed(load) for _ in range(repeats)],
            "repeated": [timed(repeated) for _ in range(repeats)],
        }
    return {"runs": runs, **{kind: statistics.median(each) for kind, each in runs.items()}}
