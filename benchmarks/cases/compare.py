"""Stock Keras and fastassign on the same file, interleaved, beside the limit of the same run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fastassign
from fastassign.benchmarks.limits.roofline import Limit


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians in seconds for one file.

    Attributes
    ----------
    case : str
        Model and file format.
    nbytes, tensors : int
        The size of the model's weights.
    stock : float
        ``model.load_weights``.
    first : float
        ``fastassign.load_weights`` of a file that was never seen, so that its index is read.
    cached : float
        The same with the index in the cache.
    fresh_limit, warm_limit : float
        Reading the file in parallel into memory that was never touched, and into memory that was.
    repeats : int
        Runs behind each median (stock may have had fewer).
    """

    case: str
    nbytes: int
    tensors: int
    stock: float
    first: float
    cached: float
    fresh_limit: float
    warm_limit: float
    repeats: int

    @property
    def size(self) -> str:
        """The size of the model, in words."""
        return f"{self.nbytes / 1e6:,.0f} MB in {self.tensors:,} tensors"

    @property
    def row(self) -> tuple[str, ...]:
        """The comparison as the cells of ``HEAD``."""
        return (
            self.case,
            f"{self.stock:.3f}",
            f"{self.first:.3f}",
            f"{self.cached:.3f}",
            f"{self.stock / self.first:.1f}; {self.stock / self.cached:.1f}",
            f"{self.warm_limit / self.cached:.0%}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the medians and the ratios as JSON-ready data."""
        return {
            **asdict(self),
            "stock_over_first": self.stock / self.first,
            "stock_over_cached": self.stock / self.cached,
            "share_of_fresh_limit": self.fresh_limit / self.cached,
            "share_of_warm_limit": self.warm_limit / self.cached,
        }


HEAD = ("case", "stock s", "first s", "cached s", "stock / ours", "share of warm limit")


def about_limits(comparisons: Sequence[Comparison]) -> str:
    """Say what the shares in a table of comparisons are of."""
    slower = statistics.median(each.fresh_limit / each.warm_limit for each in comparisons)
    return (
        "first: a file that was never seen; cached: its index is in the cache. The warm limit is to read the file in "
        f"parallel into memory that was used before. Into fresh memory that would take {slower:.1f} times as long, but "
        "a load mostly uses the memory of replaced values again."
    )


def compare(
    case: str,
    model: Any,
    path: Path,
    *,
    repeats: int = 5,
    slow_repeats: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure one file; raise if the two loaders do not agree bit for bit.

    Parameters
    ----------
    case : str
        A name for the table.
    model : keras.Model
        The model that the file belongs to.
    path : pathlib.Path
        The file. It is read once before anything is timed, so that it is in the page cache.
    repeats : int
        Runs per figure.
    slow_repeats : int, optional
        Runs of stock, if each takes minutes.
    tell : callable
        Gets a line before each step.
    """
    tell(f"{case}: checking that both loaders agree bit for bit")
    check_equal(model, path)
    uncached = fastassign.LoadOptions(index_cache=False)
    limit = Limit(path, threads=fastassign.LoadOptions().threads)
    limit.warm()
    seconds: dict[str, list[float]] = {name: [] for name in ("stock", "first", "cached", "fresh", "warm")}
    for run in range(repeats):
        tell(f"{case}: run {run + 1} of {repeats}")
        if run < (repeats if slow_repeats is None else slow_repeats):
            seconds["stock"].append(timed(lambda: model.load_weights(path)))
        seconds["first"].append(timed(lambda: fastassign.load_weights(model, path, options=uncached)))
        seconds["cached"].append(timed(lambda: fastassign.load_weights(model, path)))
        seconds["fresh"].append(limit.fresh())
        seconds["warm"].append(limit.warm())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return Comparison(
        case=case,
        nbytes=sum(_nbytes(weight) for weight in model.weights),
        tensors=len(model.weights),
        stock=medians["stock"],
        first=medians["first"],
        cached=medians["cached"],
        fresh_limit=medians["fresh"],
        warm_limit=medians["warm"],
        repeats=repeats,
    )


def timed(action: Callable[[], Any]) -> float:
    """Collect garbage, then return the seconds that an action takes."""
    gc.collect()
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def check_equal(model: Any, path: Path, load: Callable[[Any, Path], Any] | None = None) -> None:
    """Raise ``AssertionError`` unless stock and fastassign give every variable the same bytes."""
    perturb(model, 1.0)
    model.load_weights(path)
    stock = [weight.numpy().tobytes() for weight in model.weights]
    perturb(model, 2.0)
    (load or fastassign.load_weights)(model, path)
    for weight, expected in zip(model.weights, stock, strict=True):
        if weight.numpy().tobytes() != expected:
            raise AssertionError(f"{weight.path} differs from what stock Keras loads")


def perturb(model: Any, value: float) -> None:
    """Give every weight a value that differs from the file's."""
    import tensorflow as tf

    for weight in model.weights:
        weight.assign(tf.fill(weight.shape, tf.cast(value, weight.dtype)))


def _nbytes(weight: Any) -> int:
    return int(weight._value.dtype.size) * int(weight.shape.num_elements())
