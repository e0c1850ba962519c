"""Loads to a GPU, beside stock and the limits of the same run: ``fastassign bench --device gpu``."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastassign.benchmarks import machine
from fastassign.benchmarks.device import costs as device_costs
from fastassign.benchmarks.device import limits as device_limits
from fastassign.benchmarks.device import sweep as device_sweep
from fastassign.benchmarks.device.card import Card, describe, find_card
from fastassign.benchmarks.device.compare import WAYS, DeviceComparison, Subject
from fastassign.benchmarks.device.copies import CopySizes
from fastassign.benchmarks.device.models import CASES, built_on
from fastassign.benchmarks.steps import Steps, Tell
from fastassign.benchmarks.suite import Result, Table

Save = Callable[[Result], None]

TIME_HEAD = ("way", "cold s", "load s", "repeated s", "GB/s", "of pinned")
MORE_HEAD = ("way", "stock / ours", "of roof", "device MB", "host MB")


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """The device that is measured, and how.

    Attributes
    ----------
    card : Card
        The device.
    folder : pathlib.Path
        The folder for the files.
    sizes : CopySizes
        Sizes of the copies that the limits are measured by, and the runs behind each median.
    steps : Steps
        Runs each measurement on its own.
    """

    card: Card
    folder: Path
    sizes: CopySizes
    steps: Steps


def run_device_suite(
    folder: Path,
    *,
    device: str,
    cases: Sequence[str] = (),
    sizes: CopySizes | None = None,
    tell: Tell = lambda _: None,
    save: Save = lambda _: None,
) -> Result:
    """Measure a GPU.

    Parameters
    ----------
    folder : pathlib.Path
        The folder for the files, which are not removed: 3 GB, and 9 GB for ``"X"``.
    device : str
        See ``find_card``.
    cases : sequence of str
        Keys of ``MEASUREMENTS``; if empty all but ``"sweep"``, ``"X"`` only if disk and memory are enough.
    sizes : CopySizes, optional
        Sizes of the copies that the limits are measured by, and the runs behind each median.
    tell : callable
        Gets a line before each step.
    save : callable
        Gets the figures so far, after each case.

    Raises
    ------
    Unsupported
        The device does not exist.
    ValueError
        A case does not exist.
    """
    unknown = [case for case in cases if case not in MEASUREMENTS]
    if unknown:
        raise ValueError(f"unknown case {unknown[0]!r}; with --device there are {', '.join(MEASUREMENTS)}")
    steps = Steps(tell)
    steps.tell("looking for the device")
    card = find_card(device)
    setting = Setting(card, folder, sizes or CopySizes(), steps)
    result = Result({**machine.describe(), "card": describe(card)}, [])
    result.machine["versions"].update(_imported())
    steps.tell(f"measuring {result.machine['card'].get('name', card.name)}")
    for case in cases or ["limits", "costs", *(name for name, each in CASES.items() if each.fits(folder))]:
        try:
            result.tables.extend(MEASUREMENTS[case](case, setting))
        except Exception as error:  # noqa: BLE001 - the next case is measured all the same
            steps.tell(f"{case} FAILED: {type(error).__name__}: {error}")
            row = {"case": case, "error": f"{type(error).__name__}: {error}"[:2000]}
            result.tables.append(Table("failed", f"{case} failed", ("case",), [(case,)], [row], row["error"]))
        gc.collect()
        save(result)
    return result


def _imported() -> dict[str, str]:
    """Return the versions of the imported libraries, which may be on the path without being installed."""
    import keras
    import tensorflow as tf

    return {"tensorflow": tf.__version__, "keras": keras.__version__}


def _limits(_: str, setting: Setting) -> list[Table]:
    limits = device_limits.measure_limits(setting.card, setting.folder, setting.sizes, setting.steps)
    title = f"{setting.card.short}: the rates of the way there"
    return [Table("limits", title, device_limits.HEAD, device_limits.rows_of(limits), limits, _errors(limits, "limit"))]


def _costs(_: str, setting: Setting) -> list[Table]:
    costs = device_costs.measure_costs(setting.card, setting.steps, repeats=setting.sizes.repeats)
    title = f"{setting.card.short}: microseconds, measured and in planning/costs.py"
    return [Table("costs", title, device_costs.HEAD, device_costs.rows_of(costs), costs, _errors(costs, "step"))]


def _load(case: str, setting: Setting) -> list[Table]:
    subject, sizes = _subject(case, setting), setting.sizes
    # No value of a large model fits into a slot.
    ways = {way: each for way, each in WAYS.items() if not (CASES[case].is_large and way.startswith("fused"))}
    comparison = DeviceComparison(subject, setting.steps, slot_bytes=sizes.slot_bytes[0], ways=ways)
    rows = comparison.run(sizes.repeats)
    title = f"{case} ({CASES[case].title}): page cache warm, medians of {sizes.repeats}"
    return [
        Table("loads", title, TIME_HEAD, [_times(row) for row in rows], rows, "GB/s and shares: load; repeated"),
        Table("loads", f"{case}: peak memory beyond the model / planned", MORE_HEAD, [_more(row) for row in rows], [],
              _errors(rows, "way")),
    ]  # fmt: skip


def _sweep(_: str, setting: Setting) -> list[Table]:
    rows = device_sweep.measure_sweep(_subject("G", setting), setting.sizes, setting.steps)
    cells = [_sweep_cells(row) for row in rows]
    return [Table("sweep", "G, one option changed at a time", device_sweep.HEAD, cells, rows, _errors(rows, "options"))]


def _subject(case: str, setting: Setting) -> Subject:
    """Build the model of a case on the device, and write its file."""
    card, steps = setting.card, setting.steps
    steps.tell(f"{case}: building the model on {card.short}")
    model = built_on(card.name, CASES[case].build)
    steps.tell(f"{case}: writing the file")
    return Subject(case, model, CASES[case].save(model, setting.folder), card)


def _times(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["way"],
        *(_figure(row, name, ".4f") for name in ("cold", "load", "repeated")),
        _pair(row, "gbps", ".2f"),
        _pair(row, "share_of_pinned", ".0%"),
    )


def _more(row: dict[str, Any]) -> tuple[str, ...]:
    def megabytes(where: str) -> str:
        both = (row["memory"].get(f"{where}_extra_bytes"), row["memory"].get(f"{where}_planned_bytes"))
        return " / ".join("-" if value is None else f"{value / 1e6:,.0f}" for value in both)

    return (
        row["way"],
        f"{_figure(row, 'stock_over_load', '.2f')}; {_figure(row, 'stock_over_repeated', '.2f')}",
        _pair(row, "share_of_roof", ".0%"),
        megabytes("device"),
        megabytes("host"),
    )


def _errors(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return the errors of a table's rows, for below it."""
    return "; ".join(f"{row[name]} FAILED: {row['error'][:160]}" for row in rows if "error" in row)


def _sweep_cells(row: dict[str, Any]) -> tuple[str, ...]:
    options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
    if "error" in row:
        return (options, "FAILED", "", "")
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


Measurement = Callable[[str, Setting], list[Table]]

MEASUREMENTS: dict[str, Measurement] = {
    "limits": _limits,
    "costs": _costs,
    **dict.fromkeys(CASES, _load),
    "sweep": _sweep,
}
