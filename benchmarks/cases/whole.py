"""Whole models: ``load_model`` of stock Keras and of fastassign."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fastassign
from fastassign.benchmarks.limits.roofline import Limit

HEAD = ("case", "stock s", "ours s", "stock / ours", "building s")


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """Medians in seconds for one file.

    Attributes
    ----------
    case : str
        Model and file format.
    stock, ours : float
        ``keras.saving.load_model`` and ``fastassign.load_model``, with the index in the cache.
    building : float
        The part of ``ours`` in which Keras makes layers and variables, without initial values.
    fresh_limit : float
        Reading the file in parallel into memory that was never touched.
    repeats : int
        Runs behind each median.
    """

    case: str
    stock: float
    ours: float
    building: float
    fresh_limit: float
    repeats: int

    @property
    def row(self) -> tuple[str, ...]:
        """The comparison as the cells of ``HEAD``."""
        return (
            self.case,
            f"{self.stock:.2f}",
            f"{self.ours:.2f}",
            f"{self.stock / self.ours:.1f}",
            f"{self.building:.2f}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the medians and the ratios as JSON-ready data."""
        return {
            **asdict(self),
            "stock_over_ours": self.stock / self.ours,
            "ours_over_building_and_limit": self.ours / (self.building + self.fresh_limit),
        }


def compare_models(
    case: str, path: Path, *, repeats: int, tell: Callable[[str], None] = lambda _: None
) -> ModelComparison:
    """Measure both on one file; raise if they do not build the same model.

    Parameters
    ----------
    case : str
        A name for the table.
    path : pathlib.Path
        A file with a whole model.
    repeats : int
        Runs behind each median.
    tell : callable
        Gets a line before each step.
    """
    import keras

    reports: list[fastassign.Report] = []
    options = fastassign.LoadOptions(on_report=reports.append)
    limit = Limit(path, threads=options.threads)
    seconds: dict[str, list[float]] = {"stock": [], "ours": [], "fresh": []}
    _check_equal(keras.saving.load_model(path), fastassign.load_model(path))
    for run in range(repeats):
        tell(f"{case}: load_model {run + 1} of {repeats}")
        seconds["stock"].append(_timed(lambda: keras.saving.load_model(path)))
        seconds["ours"].append(_timed(lambda: fastassign.load_model(path, options=options)))
        seconds["fresh"].append(limit.fresh())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    building = statistics.median(report.seconds["build"] for report in reports)
    return ModelComparison(case, medians["stock"], medians["ours"], building, medians["fresh"], repeats)


def _timed(load: Callable[[], Any]) -> float:
    # Frees the model before this one, outside of the figure.
    gc.collect()
    begin = time.perf_counter()
    model = load()
    seconds = time.perf_counter() - begin
    del model
    return seconds


def _check_equal(stock: Any, ours: Any) -> None:
    for theirs, own in zip(stock.weights, ours.weights, strict=True):
        if theirs.numpy().tobytes() != own.numpy().tobytes():
            raise AssertionError(f"{own.path} differs from what stock loads")
