"""All ways to load one file to a device: checked bit for bit against stock, then measured in turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fastassign
from fastassign.benchmarks.cases.compare import perturb
from fastassign.benchmarks.device.card import Card, sync
from fastassign.benchmarks.device.copies import Landing, copy_seconds, leased, opened
from fastassign.benchmarks.device.roof import read_seconds, roofs
from fastassign.benchmarks.limits.peak import with_peaks
from fastassign.benchmarks.steps import Steps
from fastassign.options import DeviceOptions, LoadOptions
from fastassign.runtime import process_runtime

# The options of each way to load.
WAYS: Mapping[str, LoadOptions] = {
    "auto": LoadOptions(),
    "auto, index read": LoadOptions(index_cache=False),
    "direct": LoadOptions(device=DeviceOptions(route="direct")),
    "fused, split": LoadOptions(device=DeviceOptions(route="fused", cut="split")),
    "fused, function": LoadOptions(device=DeviceOptions(route="fused", cut="function")),
    "fused, scatter": LoadOptions(device=DeviceOptions(route="fused", cut="scatter")),
    "eager": LoadOptions(device=DeviceOptions(route="eager")),
    "auto, not page-locked": LoadOptions(device=DeviceOptions(page_lock=False)),
}

# The same bytes, measured in turns with the loads: copied from page-locked slots to the device, read from the page
# cache into the slots, and both.
LIMITS = ("pinned", "page cache", "roof")

# If stock takes longer than this, it is not repeated as often as the rest.
_SLOW_SECONDS = 5.0
_SLOW_REPEATS = 1


@dataclass(slots=True)
class Measured:
    """One way to load one file; seconds are medians.

    Attributes
    ----------
    case, way : str
        The model and file, and the key of the way in ``WAYS``.
    nbytes, tensors : int
        Bytes that are read from the file, and variables.
    cold : float or None
        The first load that way in the process, which page-locks its slots and compiles what it needs.
    load, repeated : float or None
        ``load_weights`` (stock's or fastassign's, the index in the cache), and ``Loader.load``; for ``LIMITS`` the
        copies alone.
    runs : dict of str to list of float
        The seconds behind the medians.
    memory : dict
        See ``with_peaks``; and the figures of the plan.
    report : dict
        Routes, stages in seconds, fallbacks and reasons of the last loads.
    error : str or None
        Why there are no (more) figures.
    """

    case: str
    way: str
    nbytes: int
    tensors: int
    cold: float | None = None
    load: float | None = None
    repeated: float | None = None
    runs: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def settle(self) -> None:
        """Take the medians of the runs."""
        self.load = statistics.median(self.runs["load"]) if self.runs.get("load") else None
        self.repeated = statistics.median(self.runs["repeated"]) if self.runs.get("repeated") else None


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model on a device, and its file.

    Attributes
    ----------
    case : str
        A name for the table.
    model : keras.Model
        The model, its variables on the device.
    path : pathlib.Path
        The file.
    card : Card
        The device.
    """

    case: str
    model: Any
    path: Path
    card: Card


class DeviceComparison:
    """All ways to load one file, checked and then measured in turns.

    Parameters
    ----------
    subject : Subject
        The model and its file.
    steps : Steps
        Runs the measurements, and tells of them.
    slot_bytes : int
        Size of the copies that the limits are measured by.
    ways : mapping of str to LoadOptions
        Options of each way beside stock.
    """

    def __init__(
        self, subject: Subject, steps: Steps, *, slot_bytes: int, ways: Mapping[str, LoadOptions] = WAYS
    ) -> None:
        self.case, self.model, self.path, self.card = subject.case, subject.model, subject.path, subject.card
        self.steps, self.slot_bytes, self.ways = steps, slot_bytes, ways
        self.nbytes, self.tensors = fastassign.inspect(self.path).nbytes, len(self.model.weights)
        self.measured: dict[str, Measured] = {}
        self._threads = DeviceOptions().threads
        self._expected: list[np.ndarray[Any, Any]] = []

    def run(self, repeats: int) -> list[dict[str, Any]]:
        """Check every way bit for bit, then measure those that passed; return a row for each."""
        with leased(self.card, self._threads, self.slot_bytes, locked=False) as leases:  # into the page cache
            read_seconds(self.path, leases, self._threads, self.slot_bytes)
        with ExitStack() as stack:
            ways = self._checked(stack)
            limits = dict(self._open_limits(stack))
            for run in range(repeats):
                self.steps.tell(f"{self.case}: run {run + 1} of {repeats}")
                gc.collect()
                for name, actions in {**ways, **limits}.items():
                    if name == "stock" and run >= _SLOW_REPEATS and (self.measured[name].cold or 0) > _SLOW_SECONDS:
                        continue
                    self._measure(name, actions)
        for row in self.measured.values():
            row.settle()
        return [self._row(row) for row in self.measured.values()]

    def _new(self, way: str) -> Measured:
        self.measured[way] = Measured(self.case, way, self.nbytes, self.tensors)
        return self.measured[way]

    def _attempt(self, way: str, step: str, action: Callable[[], Any]) -> bool:
        found = self.steps.run(f"{self.case}: {way}: {step}", lambda: {"done": action()})
        self.measured[way].error = found.get("error", self.measured[way].error)
        return "error" not in found

    def _checked(self, stack: ExitStack) -> dict[str, dict[str, Callable[[], Any]]]:
        """Return the actions to measure of each way that loads the values that stock loads."""
        self._new("stock")

        def stock() -> None:
            self.model.load_weights(self.path)
            sync()

        ways: dict[str, dict[str, Callable[[], Any]]] = {}
        if self._attempt("stock", "the values to compare with", lambda: self._first("stock", stock)):
            self._expected = [_bits(weight) for weight in self.model.weights]
            ways["stock"] = {"load": stock}
        for name, options in self.ways.items():
            self._new(name)
            actions = self._actions(name, options, stack)
            if self._attempt(name, "checking bit for bit", lambda a=actions, n=name: self._check(n, a)):  # type: ignore[misc]
                ways[name] = actions
                self._attempt(name, "the figures of the plan", lambda o=options, n=name: self._plan(n, o))  # type: ignore[misc]
        return ways

    def _actions(self, name: str, options: LoadOptions, stack: ExitStack) -> dict[str, Callable[[], Any]]:
        loader = stack.enter_context(fastassign.Loader(self.model, options=options))
        row = self.measured[name]

        def note(kind: str, report: fastassign.Report) -> None:
            sync()
            row.report[f"{kind}_seconds"] = dict(report.seconds)
            row.report.update(routes=dict(report.routes), fallbacks=list(report.fallbacks))

        def load() -> None:
            note("load", fastassign.load_weights(self.model, self.path, options=options))

        def repeated() -> None:
            note("repeated", loader.load(self.path))

        return {"load": load, "repeated": repeated}

    def _first(self, name: str, load: Callable[[], Any]) -> None:
        """Load the first time: over other values, with page-locked memory given back, and peak memory measured."""
        perturb(self.model, 2.0)
        sync()
        process_runtime().staging.release()
        row = self.measured[name]

        def cold() -> None:
            row.cold = timed(load)

        row.memory.update(with_peaks(self.card.short, cold))

    def _check(self, name: str, actions: Mapping[str, Callable[[], Any]]) -> None:
        self._first(name, actions["load"])
        self._compare(name)
        # Twice, because a loader makes the things that it keeps in its first load.
        for _ in range(2):
            perturb(self.model, 3.0)
            actions["repeated"]()
        self._compare(f"{name}, repeated")

    def _compare(self, name: str) -> None:
        for weight, expected in zip(self.model.weights, self._expected, strict=True):
            if not np.array_equal(_bits(weight), expected):
                raise AssertionError(f"{weight.path} differs from what stock Keras loads ({name})")

    def _plan(self, name: str, options: LoadOptions) -> None:
        plan = fastassign.plan(self.model, self.path, options=options)
        row = self.measured[name]
        row.memory["host_planned_bytes"] = plan.staging_bytes
        row.memory["device_planned_bytes"] = sum(each.peak_bytes for each in plan.schedule.lanes)
        row.report["lanes"] = [asdict(each) for each in plan.schedule.lanes]
        row.report["reasons"] = plan.to_dict()["reasons"]

    def _open_limits(self, stack: ExitStack) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
        """Return the limits of the same bytes, which are measured in turns with the loads."""
        for name, opening in zip(LIMITS, (self._pinned, self._page_cache, self._roof), strict=True):
            self._new(name)
            actions: list[Callable[[], float]] = []
            if self._attempt(name, "opening", lambda o=opening, a=actions: a.append(stack.enter_context(o()))):  # type: ignore[misc]
                yield name, {"load": actions[0]}

    @contextmanager
    def _pinned(self) -> Iterator[Callable[[], float]]:
        piece = self.slot_bytes
        landing = Landing(self.card, 8 * piece)
        with leased(self.card, 8, piece) as leases, opened(self.card) as stream:
            sources = [lease.address for lease in leases]
            total = -(-self.nbytes // piece) * piece
            # The device's clock times whole pieces; this is the share of the file's own bytes.
            share = self.nbytes / total
            yield lambda: share * copy_seconds(self.card, stream, sources, piece, total, landing)

    @contextmanager
    def _page_cache(self) -> Iterator[Callable[[], float]]:
        with leased(self.card, self._threads, self.slot_bytes) as leases:
            yield lambda: read_seconds(self.path, leases, self._threads, self.slot_bytes)

    @contextmanager
    def _roof(self) -> Iterator[Callable[[], float]]:
        with roofs(self.card, self.path, threads=self._threads, slot_bytes=self.slot_bytes) as roof:
            yield roof.seconds

    def _measure(self, name: str, actions: Mapping[str, Callable[[], Any]]) -> None:
        row = self.measured[name]
        for kind, action in actions.items():
            if row.error:
                return
            try:
                # A limit returns its seconds itself.
                seconds = action() if name in LIMITS else timed(action)
            except Exception as error:  # noqa: BLE001 - the other ways go on
                row.error = f"{type(error).__name__}: {error}"[:2000]
                self.steps.tell(f"{self.case}: {name} FAILED: {row.error}")
                return
            row.runs.setdefault(kind, []).append(seconds)

    def _row(self, row: Measured) -> dict[str, Any]:
        """Return figures and ratios as JSON-ready data."""
        data = {name: value for name, value in asdict(row).items() if value is not None}
        stock = self.measured["stock"].load
        for kind in ("load", "repeated"):
            seconds = data.get(kind)
            if seconds is None:
                continue
            data[f"{kind}_gbps"] = row.nbytes / seconds / 1e9
            for name in LIMITS:
                limit = self.measured[name].load
                if limit is not None:
                    data[f"{kind}_share_of_{name.replace(' ', '_')}"] = limit / seconds
            if stock is not None:
                data[f"stock_over_{kind}"] = stock / seconds
        return data


def _bits(weight: Any) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(weight.numpy()).reshape(-1).view(np.uint8)


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds that an action takes. Garbage is collected between runs, because that may take longer."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
