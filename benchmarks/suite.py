"""The figures of the README, in one run: ``fastassign bench``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastassign.benchmarks import machine
from fastassign.benchmarks.compare import HEAD, Comparison, compare
from fastassign.benchmarks.models import MODELS
from fastassign.benchmarks.peak import peak_extra_bytes

MEMORY_HEAD = ("case", "loader", "peak extra", "planned", "largest variable")

__all__ = ["HEAD", "MEMORY_HEAD", "Result", "run_suite"]


@dataclass(frozen=True, slots=True)
class Result:
    """All figures of one run."""

    machine: dict[str, Any]
    comparisons: list[Comparison]
    memory: dict[str, dict[str, dict[str, int]]]

    def memory_rows(self) -> list[tuple[str, ...]]:
        """Return the rows of ``MEMORY_HEAD``."""
        return [
            (case, loader, *(f"{figures[name] / 1e6:,.0f} MB" for name in ("extra", "planned", "largest")))
            for case, loaders in self.memory.items()
            for loader, figures in loaders.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        return {
            "machine": self.machine,
            "page_cache": "warm",
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "peak_memory": self.memory,
        }


def run_suite(
    folder: Path, *, cases: Sequence[str], repeats: int, tell: Callable[[str], None] = lambda _: None
) -> Result:
    """Make the files and measure them.

    Parameters
    ----------
    folder : pathlib.Path
        Where the files go: 2 GB for all cases.
    cases : sequence of str
        Keys of ``MODELS``.
    repeats : int
        Runs behind each median.
    tell : callable
        Gets a line before each step.
    """
    comparisons: list[Comparison] = []
    memory: dict[str, dict[str, dict[str, int]]] = {}
    for case in cases:
        if case not in MODELS:
            raise ValueError(f"unknown case {case!r}; there are {', '.join(MODELS)}")
        tell(f"{case}: building and saving with Keras")
        model = MODELS[case]()
        paths = [folder / f"{case}.weights.h5", folder / f"{case}.h5"]
        model.save_weights(paths[0])
        model.save(paths[1])
        comparisons += [compare(f"{case} {_suffix(path)}", model, path, repeats=repeats, tell=tell) for path in paths]
        if case == "G":
            archive = folder / f"{case}.keras"
            model.save(archive)
            # Stock reads this one for a minute: once is enough.
            comparisons.append(compare(f"{case} .keras", model, archive, repeats=repeats, slow_repeats=1, tell=tell))
            archive.unlink()
            memory[case] = {}
            for loader in ("stock", "fastassign"):
                tell(f"{case}: peak memory of {loader}")
                memory[case][loader] = peak_extra_bytes(
                    f"{MODELS[case].__module__}:{MODELS[case].__name__}", paths[0], loader
                )
        for path in paths:
            path.unlink()
    return Result(machine.describe(), comparisons, memory)


def _suffix(path: Path) -> str:
    return ".weights.h5" if path.name.endswith(".weights.h5") else path.suffix
