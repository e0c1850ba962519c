"""A load, decided in every detail before the first byte is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.memory import MemoryCatalog
from fastassign.catalog.records import TensorRecord
from fastassign.matching.assignment import Assignment, Matching
from fastassign.options import LoadOptions
from fastassign.planning.batches import Batch, BatchLimits, make_batches
from fastassign.planning.budget import (
    TOGETHER,
    beside_bytes,
    check_budget,
    copied_bytes,
    hook_bytes,
    over_budget,
    together_bytes,
)
from fastassign.planning.checks import check_choice, check_overlaps
from fastassign.planning.lanes import NO_DEVICES, Devices, Lane, whole_pages
from fastassign.planning.reasons import fallbacks, reasons
from fastassign.planning.ring_budget import RingBudget, lay_lanes, least_for_rings, without_window
from fastassign.planning.routes import Placement, place
from fastassign.progress import Callback, reporting
from fastassign.report import Report
from fastassign.text import printable, table


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a load will do.

    Attributes
    ----------
    catalog : Catalog or MemoryCatalog
        The file, or arrays in place of one.
    matching : Matching
        Which record goes into which variable.
    options : LoadOptions
        The knobs that it was made with.
    batches : tuple of Batch
        The work, in the order of the file.
    window_bytes : int
        The most bytes that are read ahead of the assignments.
    staging_bytes : int
        The most host memory that values read but not yet assigned take at any time.
    copied_bytes : int
        What of it the library's own assign takes for copies.
    lanes : tuple of Lane
        The ways to the devices that values are copied to by ourselves.
    fallbacks : tuple of str
        Where values go to a device by TensorFlow's own copy, what is missing and what that costs.
    repeated : bool
        Whether it will be carried out again and again.
    atomic : bool
        Whether a load that fails leaves all variables as they were.
    read_first : bool
        Whether all values are read before the first is assigned; always so where ``atomic``.
    """

    catalog: Catalog | MemoryCatalog
    matching: Matching
    options: LoadOptions
    batches: tuple[Batch, ...]
    window_bytes: int
    staging_bytes: int
    copied_bytes: int
    lanes: tuple[Lane, ...]
    fallbacks: tuple[str, ...]
    repeated: bool
    atomic: bool
    read_first: bool
    seconds: dict[str, float] = field(default_factory=dict)
    executor: Callable[..., Report] | None = None
    progress: bool | Callback | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the load reads from the file, decoded."""
        converted = sum(conversion.recipe.nbytes for conversion in self.matching.conversions.values())
        return sum(batch.nbytes for batch in self.batches) + sum(r.nbytes for r in self.hook_records) + converted

    @property
    def threads(self) -> int:
        """Threads that read."""
        return self.options.device.threads if self.lanes else self.options.threads

    @property
    def hook_records(self) -> list[TensorRecord]:
        """Records that go through the library's own code: what layers load by themselves."""
        return [record for hook in self.matching.hooks for record in hook.records.values()]

    def execute(self, progress: bool | Callback | None = None) -> Report:
        """Do what the plan says.

        Parameters
        ----------
        progress : bool or callable, optional
            As for ``fastassign.load_weights``.

        Raises
        ------
        Changed
            The file was written to or replaced since the plan was made.
        """
        if self.executor is None:
            raise TypeError("this plan was made without an executor; make it with fastassign.plan")
        with reporting(self.progress if progress is None else progress) as callback:
            return self.executor(self, callback)

    def reading_first(self) -> Plan:
        """Return the same plan with everything read before the first variable is assigned.

        Raises
        ------
        Budget
            The values do not fit into ``options.max_staging_bytes`` all together.
        """
        limit = self.options.max_staging_bytes
        placements = [p for batch in self.batches for p in batch.placements]
        together = together_bytes(placements, self.matching, self.copied_bytes)
        if together + sum(lane.slot_bytes for lane in self.lanes) > limit:
            beside = beside_bytes(placements, self.matching, self.copied_bytes)
            least = least_for_rings(self.options, beside, together, len(self.lanes))
            raise over_budget(self.catalog, least, limit, TOGETHER)
        lanes = without_window(self.lanes, self.batches, limit - together)
        staging = together + sum(lane.ring_bytes for lane in lanes)
        return replace(self, read_first=True, staging_bytes=staging, lanes=lanes)

    def rows(self) -> list[tuple[str, str, str, str, str, int]]:
        """Return (variable, shape, dtype, route, record, bytes) of every variable, in the order of the file."""
        rows = [
            (p.assignment.target.name, str(p.assignment.target.shape), p.assignment.target.dtype, _describe(p),
             p.assignment.record.key, p.nbytes)
            for batch in self.batches
            for p in batch.placements
        ]  # fmt: skip
        for hook in self.matching.hooks:
            rows += [(str(hook.obj), str(r.shape), "", "hook", r.key, r.nbytes) for r in hook.records.values()]
        rows += [
            (c.target.name, str(c.target.shape), c.target.dtype, f"convert ({', '.join(c.recipe.steps)})",
             c.recipe.key, c.recipe.nbytes)
            for c in self.matching.conversions.values()
        ]  # fmt: skip
        return rows

    def __str__(self) -> str:
        """Show the plan as a table, with what is left over on both sides."""
        rows = [(name, shape, dtype, route, key) for name, shape, dtype, route, key, _ in self.rows()]
        reads = sum(len(batch.reads) for batch in self.batches)
        lines = [
            f"{len(rows)} tensors, {self.nbytes} bytes in {reads} reads, at most {self.staging_bytes} bytes staged"
        ]
        lines += [
            f"{lane.device}: {lane.slots} slots of {lane.slot_bytes} bytes on the way, at most {lane.peak_bytes} bytes "
            "of the device beyond the variables"
            for lane in self.lanes
        ]
        lines += [f"{route}: {why}" for route, why in self._reasons().items()]
        for label, items in self._leftovers():
            lines += [f"{label}: {item}" for item in items]
        return "\n".join(
            [table(("variable", "shape", "dtype", "route", "from"), rows, names=(0, 4)), *map(printable, lines)]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        names = ("variable", "shape", "dtype", "route", "record", "bytes")
        data: dict[str, Any] = {
            "file": str(self.catalog.path),
            "library": self.matching.library,
            "layout": self.matching.layout,
            "bytes": self.nbytes,
            "reads": sum(len(batch.reads) for batch in self.batches),
            "window_bytes": self.window_bytes,
            "staging_bytes": self.staging_bytes,
            "lanes": [{**asdict(lane), "ring_bytes": lane.ring_bytes} for lane in self.lanes],
            "reasons": self._reasons(),
            "atomic": self.atomic,
            "read_first": self.read_first,
            "tensors": [dict(zip(names, row, strict=True)) for row in self.rows()],
        }
        data.update({label.replace(" ", "_"): list(items) for label, items in self._leftovers()})
        json.dumps(data)  # what is returned can be written, always
        return data

    def _reasons(self) -> dict[str, str]:
        """Say why values go to devices the way they do."""
        return reasons(self.batches, self.lanes, self.options, repeated=self.repeated)

    def _leftovers(self) -> list[tuple[str, Sequence[str]]]:
        matching = self.matching
        return [
            ("fallback", self.fallbacks),
            ("skipped", [*matching.skipped, *(f"{each.obj}: {each.error}" for each in matching.failures)]),
            ("repaired", matching.repaired),
            ("missing in the file", [target.name for target in matching.missing]),
            ("unexpected in the file", [record.key for record in matching.unexpected]),
        ]


def make_plan(
    catalog: Catalog | MemoryCatalog,
    matching: Matching,
    options: LoadOptions,
    *,
    atomic: bool = False,
    repeated: bool = False,
    devices: Devices = NO_DEVICES,
    seconds: dict[str, float] | None = None,
    executor: Callable[..., Report] | None = None,
    progress: bool | Callback | None = None,
) -> Plan:
    """Plan a load.

    Parameters
    ----------
    catalog : Catalog or MemoryCatalog
        The file, or arrays in place of one.
    matching : Matching
        Which record goes into which variable.
    options : LoadOptions
        The knobs.
    atomic : bool
        See ``Plan``.
    repeated : bool
        Whether the plan will be carried out again and again.
    devices : Devices
        The devices that values can be copied to.
    seconds, executor, progress
        What ``Plan`` keeps for its execution.

    Raises
    ------
    Budget
        A tensor (or, with ``atomic``, all of them) does not fit into ``options.max_staging_bytes``.
    Refused
        Two tensors of the load share bytes of the file.
    Unsupported
        No value can take ``options.device.route``, or a device lacks the kernels that ``options.device.cut`` needs.
    """
    if "overlap" not in options.allow:
        check_overlaps(catalog, matching)
    slot_bytes = whole_pages(options.device.slot_bytes)

    def placed(assignment: Assignment) -> Placement:
        return place(assignment, options, repeated=repeated, devices=devices, slot_bytes=slot_bytes)

    placements = [placed(assignment) for assignment in matching.assignments.values()]
    limit, copied = options.max_staging_bytes, copied_bytes(placements)
    beside = check_budget(catalog, matching, placements, limit, copied=copied, atomic=atomic)
    rings = RingBudget.of(options, limit - beside, len({p.lane for p in placements if p.lane}))
    if rings.slot_bytes < slot_bytes:
        # Smaller slots share less: only values on their way through them are placed anew.
        slot_bytes = rings.slot_bytes
        placements = [placed(p.assignment) if p.lane else p for p in placements]
    room = max(limit - copied - rings.nbytes, 1)
    sizes = BatchLimits(room=room, slot_bytes=rings.slot_bytes)
    batches = make_batches(placements, options, sizes, devices, repeated=repeated)
    missing = fallbacks(placements, options, devices)
    check_choice(catalog, batches, options, devices, missing)
    lanes = lay_lanes(batches, rings, options, devices)
    window = min(options.window_bytes, room)
    hosted = [batch.staged_bytes for batch in batches if not batch.lane]
    staging = max(min(sum(hosted), max(window, *hosted, 0)) + copied, hook_bytes(matching))
    plan = Plan(
        catalog=catalog,
        matching=matching,
        options=options,
        batches=batches,
        window_bytes=window,
        staging_bytes=staging + sum(lane.ring_bytes for lane in lanes),
        copied_bytes=copied,
        lanes=lanes,
        fallbacks=missing,
        repeated=repeated,
        atomic=atomic,
        read_first=False,
        seconds=seconds or {},
        executor=executor,
        progress=progress,
    )
    return plan.reading_first() if atomic else plan


def _describe(placement: Placement) -> str:
    assignment = placement.assignment
    if assignment.fit == "cast":
        return f"{placement.route} (cast from {assignment.record.dtype})"
    if assignment.record.detail:
        return f"{placement.route} ({assignment.record.detail})"
    return placement.route
