"""Loads to a device with one knob turned at a time: the figures behind the defaults of ``LoadOptions``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastassign
from fastassign.benchmarks.device.card import Card, sync
from fastassign.benchmarks.device.compare import timed
from fastassign.benchmarks.device.copies import CopySizes, copy_rate
from fastassign.benchmarks.steps import Steps
from fastassign.runtime import process_runtime

HEAD = ("options", "load; repeated s", "GB/s", "of pinned")

_MiB = 1 << 20

# Knobs that were not measured on a card, one after the other; the rest is as it is by default.
KNOBS: Sequence[Mapping[str, Any]] = (
    *({"threads": count} for count in (1, 2, 4, 8, 12, 16)),
    *({"slot_bytes": size * _MiB} for size in (2, 4, 8, 16, 32)),
    *({"window_bytes": size * _MiB} for size in (64, 128, 256, 512, 1024, 2048)),
    *({"fused_bytes": size} for size in (16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)),
)


def measure_sweep(
    model: Any, path: Path, card: Card, sizes: CopySizes, steps: Steps, *, repeats: int = 2
) -> list[dict[str, Any]]:
    """Measure loads of one file under each of ``KNOBS``.

    Parameters
    ----------
    model : keras.Model
        The model, its variables on the device.
    path : pathlib.Path
        The file, in the page cache.
    card : Card
        The device.
    sizes : CopySizes
        How much is copied to measure the rate that they are compared with.
    steps : Steps
        Runs each on its own.
    repeats : int
        Runs behind each median.

    Returns
    -------
    list of dict
        ``options``, and medians in seconds, GB/s and shares of the page-locked rate of ``load`` and ``repeated``; or
        an error.
    """
    nbytes = fastassign.inspect(path).nbytes
    pinned = steps.run("sweep: the page-locked rate", lambda: copy_rate(card, sizes, sizes.slot_bytes[0], locked=True))
    rows = []
    for knobs in KNOBS:
        found = steps.run(f"sweep: {dict(knobs)}", lambda k=knobs: _turned(model, path, k, repeats))  # type: ignore[misc]
        for kind in ("load", "repeated"):
            if kind in found:
                found[f"{kind}_gbps"] = nbytes / found[kind] / 1e9
                if "gbps" in pinned:
                    found[f"{kind}_share_of_pinned"] = found[f"{kind}_gbps"] / pinned["gbps"]
        rows.append({"options": dict(knobs), **found})
    return rows


def _turned(model: Any, path: Path, knobs: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    process_runtime().staging.release()
    options = fastassign.LoadOptions(device=fastassign.DeviceOptions(**knobs))

    def load() -> None:
        fastassign.load_weights(model, path, options=options)
        sync()

    def repeated() -> None:
        loader.load(path)
        sync()

    with fastassign.Loader(model, options=options) as loader:
        # Twice: the first time a loader makes what it keeps.
        repeated()
        repeated()
        runs = {
            "load": [timed(load) for _ in range(repeats)],
            "repeated": [timed(repeated) for _ in range(repeats)],
        }
    return {"runs": runs, **{kind: statistics.median(each) for kind, each in runs.items()}}
