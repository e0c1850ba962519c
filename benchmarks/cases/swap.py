"""Weights swapped in a running process: repeated loads, and a model that is called meanwhile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastassign
from fastassign.benchmarks.cases.compare import check_equal, timed
from fastassign.benchmarks.limits.roofline import Limit

SWAP_HEAD = ("case", "stock s", "load ms", "async ms", "stock / load", "share of warm limit")
SERVE_HEAD = ("meanwhile", "calls", "median ms", "slowest ms")


@dataclass(frozen=True, slots=True)
class SwapComparison:
    """Medians in seconds for one model, two files in turn.

    Attributes
    ----------
    case : str
        Model and file format.
    stock, load, load_async : float
        ``model.load_weights``, ``Loader.load``, and ``Loader.load_async`` until its result.
    warm_limit : float
        Reading the file in parallel into memory that was touched before.
    repeats : int
        Runs behind each median.
    """

    case: str
    stock: float
    load: float
    load_async: float
    warm_limit: float
    repeats: int

    @property
    def row(self) -> tuple[str, ...]:
        """The comparison as the cells of ``SWAP_HEAD``."""
        return (
            self.case,
            f"{self.stock:.3f}",
            f"{self.load * 1e3:.1f}",
            f"{self.load_async * 1e3:.1f}",
            f"{self.stock / self.load:.1f}",
            f"{self.warm_limit / self.load:.0%}; {self.warm_limit / self.load_async:.0%}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the medians and the ratios as JSON-ready data."""
        return {
            **asdict(self),
            "stock_over_load": self.stock / self.load,
            "share_of_warm_limit": self.warm_limit / self.load,
            "share_of_warm_limit_async": self.warm_limit / self.load_async,
        }


def compare_swaps(
    case: str, model: Any, paths: tuple[Path, Path], *, repeats: int, tell: Callable[[str], None] = lambda _: None
) -> SwapComparison:
    """Measure repeated loads of two files of one structure; raise if a swap is not exact.

    Parameters
    ----------
    case : str
        A name for the table.
    model : keras.Model
        The model of both files.
    paths : (pathlib.Path, pathlib.Path)
        Two files with different values.
    repeats : int
        Runs behind each median.
    tell : callable
        Gets a line before each step.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("stock", "load", "load_async", "warm")}
    limit = Limit(paths[0], threads=fastassign.LoadOptions().threads)
    limit.warm()
    with fastassign.Loader(model) as loader:
        for path in (*paths, *paths):
            loader.load(path)
            check_equal(model, path, load=lambda model, path: loader.load(path))
        loader.load_async(paths[0]).result()
        for run in range(repeats):
            tell(f"{case}: swap {run + 1} of {repeats}")
            path = paths[run % 2]
            seconds["stock"].append(timed(lambda: model.load_weights(path)))  # noqa: B023 - called at once
            seconds["load"].append(timed(lambda: loader.load(paths[0])))
            seconds["load"].append(timed(lambda: loader.load(paths[1])))
            seconds["load_async"].append(timed(lambda: loader.load_async(paths[0]).result()))
            seconds["load_async"].append(timed(lambda: loader.load_async(paths[1]).result()))
            seconds["warm"].append(limit.warm())
            seconds["warm"].append(limit.warm())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return SwapComparison(case, medians["stock"], medians["load"], medians["load_async"], medians["warm"], repeats)


@dataclass(frozen=True, slots=True)
class ServerLatency:
    """Seconds of the calls of a model, one after the other.

    Attributes
    ----------
    case : str
        Model and input.
    quiet : tuple of float
        Calls with nothing else going on.
    swapping : tuple of float
        Calls that began or ended while weights were swapped.
    """

    case: str
    quiet: tuple[float, ...]
    swapping: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The slowest call during swaps, divided by the slowest of the others."""
        return max(self.swapping) / max(self.quiet)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The latencies as rows of ``SERVE_HEAD``."""
        return [
            (what, str(len(calls)), f"{statistics.median(calls) * 1e3:.1f}", f"{max(calls) * 1e3:.1f}")
            for what, calls in (("nothing", self.quiet), ("a swap", self.swapping))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready data."""
        return {
            "case": self.case,
            "calls": len(self.quiet),
            "median": statistics.median(self.quiet),
            "slowest": max(self.quiet),
            "swapping_calls": len(self.swapping),
            "swapping_median": statistics.median(self.swapping),
            "swapping_slowest": max(self.swapping),
            "ratio": self.ratio,
        }


def serve(case: str, model: Any, paths: tuple[Path, Path], *, tokens: int, swaps: int) -> ServerLatency:
    """Call a GPT-like model in a loop, and swap its weights meanwhile.

    Parameters
    ----------
    case : str
        A name for the table.
    model : keras.Model
        A model that takes token numbers and positions.
    paths : (pathlib.Path, pathlib.Path)
        Two files with different values.
    tokens : int
        Tokens in one call.
    swaps : int
        How often the weights are swapped.
    """
    import tensorflow as tf

    numbers = [tf.constant(np.arange(tokens, dtype=np.int32)[None]) for _ in range(2)]
    call = tf.function(lambda: model(numbers, training=False), autograph=False)

    def one() -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    with fastassign.Loader(model) as loader:
        for path in (*paths, *paths):
            loader.load_async(path).result()
            one()
        quiet: list[float] = []
        swapping: list[float] = []
        for swap in range(swaps):
            future = loader.load_async(paths[swap % 2])
            during = 0
            while not future.done():
                swapping.append(one())
                during += 1
            swapping.append(one())
            future.result()
            # As many calls without a swap, in turns, so that both kinds meet the same load of the machine.
            quiet += [one() for _ in range(during + 1)]
    return ServerLatency(case, tuple(quiet), tuple(swapping))
