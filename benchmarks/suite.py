"""The figures of the documentation, in one run: ``fastassign bench``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastassign.benchmarks import machine
from fastassign.benchmarks.cases import compare, graph, swap, whole
from fastassign.benchmarks.cases.models import MODELS
from fastassign.benchmarks.limits.peak import peak_extra_bytes

Tell = Callable[[str], None]

# Tokens in one call of the server loop: a decoding step with a short prompt.
_TOKENS = 16
_SWAPS = 10


@dataclass(frozen=True, slots=True)
class Table:
    """Figures to print, and all figures as JSON-ready data.

    Attributes
    ----------
    key : str
        The key of the data in the JSON.
    title : str
        A line above the table.
    head, rows : tuple of str, list of tuple of str
        The cells to print.
    data : list of dict
        The figures behind them.
    note : str
        An explanation below the table.
    """

    key: str
    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    data: list[dict[str, Any]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """All figures of one run."""

    machine: dict[str, Any]
    tables: list[Table]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        data: dict[str, Any] = {"machine": self.machine, "page_cache": "warm"}
        for table in self.tables:
            data.setdefault(table.key, []).extend(table.data)
        return data


def run_suite(folder: Path, *, cases: Sequence[str], repeats: int, tell: Tell = lambda _: None) -> Result:
    """Make the files and measure them.

    Parameters
    ----------
    folder : pathlib.Path
        The folder for the files: 2 GB for all cases.
    cases : sequence of str
        Keys of ``CASES``.
    repeats : int
        Runs behind each median.
    tell : callable
        Gets a line before each step.
    """
    unknown = [case for case in cases if case not in CASES]
    if unknown:
        raise ValueError(f"unknown case {unknown[0]!r}; there are {', '.join(CASES)}")
    tables: list[Table] = []
    for case in cases:
        tables += CASES[case](case, folder, repeats, tell)
    return Result(machine.describe(), tables)


def _load(case: str, folder: Path, repeats: int, tell: Tell) -> list[Table]:
    tell(f"{case}: building and saving with Keras")
    model = MODELS[case]()
    paths = [folder / f"{case}.weights.h5", folder / f"{case}.h5"]
    model.save_weights(paths[0])
    model.save(paths[1])
    found = [compare.compare(f"{case} {_suffix(path)}", model, path, repeats=repeats, tell=tell) for path in paths]
    tables = []
    if case == "G":
        archive = folder / f"{case}.keras"
        model.save(archive)
        # Stock takes a minute for this one, so it runs once.
        found.append(compare.compare(f"{case} .keras", model, archive, repeats=repeats, slow_repeats=1, tell=tell))
        archive.unlink()
        tables.append(_memory(case, paths[0], tell))
    for path in paths:
        path.unlink()
    title = f"{case}, {found[0].size}: seconds to load, page cache warm (medians)"
    rows, data = [each.row for each in found], [each.to_dict() for each in found]
    return [Table("comparisons", title, compare.HEAD, rows, data, compare.about_limits(found)), *tables]


def _memory(case: str, path: Path, tell: Tell) -> Table:
    figures = {}
    for loader in ("stock", "fastassign"):
        tell(f"{case}: peak memory of {loader}")
        figures[loader] = peak_extra_bytes(f"{MODELS[case].__module__}:{MODELS[case].__name__}", path, loader)
    rows = [
        (loader, *(f"{measured[name] / 1e6:,.0f} MB" for name in ("extra", "planned", "largest")))
        for loader, measured in figures.items()
    ]
    head = ("loader", "peak extra", "planned", "largest variable")
    data = [{"case": case, "loader": loader, **measured} for loader, measured in figures.items()]
    return Table("peak_memory", f"{case}: peak memory beyond the model", head, rows, data)


def _graph(case: str, folder: Path, repeats: int, tell: Tell) -> list[Table]:
    found = []
    for count in (200, 1000):
        for nbytes in (200_000, 4_000):
            tell(f"{case}: {count} variables of {nbytes} bytes")
            found.append(graph.compare_assign(count, nbytes, repeats=repeats))
    tell(f"{case}: from a file")
    found.append(graph.compare_load(folder, repeats=repeats))
    title = "TensorFlow 1 session: stock (batch_set_value, load_weights) / fastassign (medians)"
    return [Table("graph", title, graph.HEAD, [c.row for c in found], [c.to_dict() for c in found])]


def _swap(case: str, folder: Path, repeats: int, tell: Tell) -> list[Table]:
    found = []
    for name in ("G", "R"):
        tell(f"{case}: building and saving {name} with Keras")
        model = MODELS[name]()
        for suffix in (".weights.h5", ".h5"):
            paths = _two_files(model, folder, name, suffix)
            found.append(swap.compare_swaps(f"{name} {suffix}", model, paths, repeats=repeats, tell=tell))
            for path in paths:
                path.unlink()
    title = "Weights swapped by a Loader, two files in turn, page cache warm (medians)"
    note = "Shares: Loader.load; load_async. The warm limit is to read the file in parallel into memory that was used."
    return [Table("swap", title, swap.SWAP_HEAD, [c.row for c in found], [c.to_dict() for c in found], note)]


def _serve(case: str, folder: Path, repeats: int, tell: Tell) -> list[Table]:
    tell(f"{case}: building and saving G with Keras")
    model = MODELS["G"]()
    paths = _two_files(model, folder, "G", ".weights.h5")
    tell(f"{case}: calling it, {max(repeats, _SWAPS)} swaps")
    found = swap.serve(f"G, {_TOKENS} tokens a call", model, paths, tokens=_TOKENS, swaps=max(repeats, _SWAPS))
    for path in paths:
        path.unlink()
    title = f"Calls of a model ({found.case}) while its weights are swapped by load_async"
    note = f"The slowest call during a swap took {found.ratio:.2f} times as long as the slowest of the others."
    return [Table("serve", title, swap.SERVE_HEAD, found.rows, [found.to_dict()], note)]


def _whole(case: str, folder: Path, repeats: int, tell: Tell) -> list[Table]:
    found = []
    for name in ("G", "R"):
        tell(f"{case}: building and saving {name} with Keras")
        model = MODELS[name]()
        for suffix in (".h5", ".keras"):
            path = folder / f"{name}{suffix}"
            model.save(path)
            found.append(whole.compare_models(f"{name} {suffix}", path, repeats=repeats, tell=tell))
            path.unlink()
    title = "load_model of Keras 3 and of fastassign, page cache warm (medians)"
    note = "building: the part of ours in which Keras makes layers and variables."
    return [Table("whole", title, whole.HEAD, [c.row for c in found], [c.to_dict() for c in found], note)]


def _two_files(model: Any, folder: Path, name: str, suffix: str) -> tuple[Path, Path]:
    paths = folder / f"{name}-1{suffix}", folder / f"{name}-2{suffix}"
    for value, path in enumerate(paths):
        for weight in model.weights[::7]:
            weight.assign(weight + float(value))
        (model.save_weights if suffix == ".weights.h5" else model.save)(path)
    return paths


def _suffix(path: Path) -> str:
    return ".weights.h5" if path.name.endswith(".weights.h5") else path.suffix


CASES: dict[str, Callable[[str, Path, int, Tell], list[Table]]] = {
    **dict.fromkeys(MODELS, _load),
    "graph": _graph,
    "swap": _swap,
    "serve": _serve,
    "whole": _whole,
}
