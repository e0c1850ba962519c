"""Loads to a GPU, beside stock and the limits of the same run: ``fastassign bench --device gpu``."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastassign.benchmarks import machine
from fastassign.benchmarks.device import costs as device_costs
from fastassign.benchmarks.device import limits as device_limits
from fastassign.benchmarks.device import sweep as device_sweep
from fastassign.benchmarks.device.card import Card, describe, find_card
from fastassign.benchmarks.device.compare import WAYS, DeviceComparison
from fastassign.benchmarks.device.copies import CopySizes
from fastassign.benchmarks.device.models import CASES, built_on
from fastassign.benchmarks.steps import Steps, Tell
from fastassign.benchmarks.suite import Result, Table

Save = Callable[[Result], None]

HEAD = (
    "case",
    "way",
    "cold s",
    "load s",
    "repeated s",
    "GB/s",
    "of pinned",
    "of roof",
    "stock / load; repeated",
    "device MB extra / planned",
    "host MB extra / planned",
)


def run_device_suite(
    folder: Path,
    *,
    device: str,
    cases: Sequence[str] = (),
    repeats: int = 5,
    tell: Tell = lambda _: None,
    save: Save = lambda _: None,
    sizes: CopySizes | None = None,
) -> Result:
    """Measure a GPU.

    Parameters
    ----------
    folder : pathlib.Path
        Where the files go, which stay there: 3 GB, and 9 GB for ``"X"``.
    device : str
        See ``find_card``.
    cases : sequence of str
        Of ``PARTS``; if empty all but ``"sweep"``, ``"X"`` where disk and memory are enough.
    repeats : int
        Runs behind each median.
    tell : callable
        Gets a line before each step.
    save : callable
        Gets what was found so far, after each part.
    sizes : CopySizes, optional
        How much is copied to measure the limits.

    Raises
    ------
    Unsupported
        There is no such device.
    ValueError
        There is no such case.
    """
    unknown = [case for case in cases if case not in PARTS]
    if unknown:
        raise ValueError(f"unknown case {unknown[0]!r}; with --device there are {', '.join(PARTS)}")
    steps = Steps(tell)
    steps.tell("looking for the device")
    card = find_card(device)
    result = Result({**machine.describe(), "card": describe(card)}, [])
    result.machine["versions"].update(_imported())
    steps.tell(f"measuring {result.machine['card'].get('name', card.name)}")
    for case in cases or ["limits", "costs", *(case for case, what in CASES.items() if what.fits(folder))]:
        try:
            result.tables.extend(PARTS[case](case, card, folder, repeats, steps, sizes or CopySizes(repeats=repeats)))
        except Exception as error:  # noqa: BLE001 - the next part is to be measured
            steps.tell(f"{case} FAILED: {type(error).__name__}: {error}")
            row = {"case": case, "error": f"{type(error).__name__}: {error}"[:2000]}
            result.tables.append(Table("failed", f"{case} failed", ("case", "error"), [tuple(row.values())], [row]))
        gc.collect()
        save(result)
    return result


def _imported() -> dict[str, str]:
    """Return the versions of what was imported: it may not be installed, but on the path."""
    import keras
    import tensorflow as tf

    return {"tensorflow": tf.__version__, "keras": keras.__version__}


def _limits(case: str, card: Card, folder: Path, repeats: int, steps: Steps, sizes: CopySizes) -> list[Table]:
    del case, repeats
    limits = device_limits.measure_limits(card, folder, sizes, steps)
    title = f"{card.short}: what the way there carries"
    return [Table("limits", title, device_limits.HEAD, device_limits.rows_of(limits), limits)]


def _costs(case: str, card: Card, folder: Path, repeats: int, steps: Steps, sizes: CopySizes) -> list[Table]:
    del case, folder, sizes
    costs = device_costs.measure_costs(card, steps, repeats=repeats)
    title = f"{card.short}: microseconds, and what planning/costs.py has"
    return [Table("costs", title, device_costs.HEAD, device_costs.rows_of(costs), costs)]


def _load(case: str, card: Card, folder: Path, repeats: int, steps: Steps, sizes: CopySizes) -> list[Table]:
    what = CASES[case]
    model, path = _made(case, card, folder, steps)
    # Of a large model no value fits into a slot.
    ways = {name: knobs for name, knobs in WAYS.items() if not (what.is_large and name.startswith("fused"))}
    comparison = DeviceComparison(case, model, path, card, steps, slot_bytes=sizes.slot_bytes[0], ways=ways)
    rows = comparison.run(repeats)
    title = f"{case} ({what.title}): page cache warm, medians of {repeats}"
    return [Table("loads", title, HEAD, [_cells(row) for row in rows], rows)]


def _sweep(case: str, card: Card, folder: Path, repeats: int, steps: Steps, sizes: CopySizes) -> list[Table]:
    del case
    model, path = _made("G", card, folder, steps)
    rows = device_sweep.measure_sweep(model, path, card, sizes, steps, repeats=repeats)
    cells = [_sweep_cells(row) for row in rows]
    return [Table("sweep", "G, one knob turned at a time", device_sweep.HEAD, cells, rows)]


def _made(case: str, card: Card, folder: Path, steps: Steps) -> tuple[Any, Path]:
    """Return the model of a case, on the device, and its file."""
    what = CASES[case]
    steps.tell(f"{case}: building the model on {card.short}")
    model = built_on(card.name, what.build)
    steps.tell(f"{case}: writing the file")
    return model, what.save(model, folder)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    def megabytes(where: str) -> str:
        both = (row["memory"].get(f"{where}_extra_bytes"), row["memory"].get(f"{where}_planned_bytes"))
        return " / ".join("-" if value is None else f"{value / 1e6:,.0f}" for value in both)

    return (
        row["case"],
        row["way"] + (f" FAILED: {row['error'][:160]}" if "error" in row else ""),
        *(_figure(row, name, ".4f") for name in ("cold", "load", "repeated")),
        _pair(row, "gbps", ".2f"),
        _pair(row, "share_of_pinned", ".0%"),
        _pair(row, "share_of_roof", ".0%"),
        f"{_figure(row, 'stock_over_load', '.2f')}; {_figure(row, 'stock_over_repeated', '.2f')}",
        megabytes("device"),
        megabytes("host"),
    )


def _sweep_cells(row: dict[str, Any]) -> tuple[str, ...]:
    options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
    if "error" in row:
        return (options, f"failed: {row['error'][:160]}", "", "")
    return (
        options,
        f"{row['load']:.4f}; {row['repeated']:.4f}",
        _pair(row, "gbps", ".2f"),
        _pair(row, "share_of_pinned", ".0%"),
    )


def _figure(row: Mapping[str, Any], name: str, how: str) -> str:
    return format(row[name], how) if row.get(name) is not None else "-"


def _pair(row: Mapping[str, Any], name: str, how: str) -> str:
    return f"{_figure(row, f'load_{name}', how)}; {_figure(row, f'repeated_{name}', how)}"


Part = Callable[[str, Card, Path, int, Steps, CopySizes], list[Table]]

PARTS: dict[str, Part] = {"limits": _limits, "costs": _costs, **dict.fromkeys(CASES, _load), "sweep": _sweep}
