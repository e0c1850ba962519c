"""A load, decided in every detail before the first byte is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from fastassign.catalog.origin import Origin
from fastassign.errors import FastAssignError
from fastassign.matching.assignment import Matching
from fastassign.options import LoadOptions
from fastassign.planning.routes import Placement
from fastassign.planning.schedule import Schedule, reading_first
from fastassign.progress import Callback, reporting
from fastassign.report import Report
from fastassign.runtime import Runtime
from fastassign.text import printable, table


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """A load in every detail. Nothing in it changes; executing it twice loads twice.

    Attributes
    ----------
    origin : Origin
        The origin of the values: the catalog of a file, or arrays in memory.
    matching : Matching
        The records and the variables that they go into.
    options : LoadOptions
        The options that the plan was made with.
    schedule : Schedule
        The batches, the lanes to devices, and the memory that they take.
    session : tf.compat.v1.Session or None
        The session that runs the assignments, if the variables belong to a TensorFlow 1 graph.
    runtime : Runtime
        The parts of the process that an execution works with.
    atomic : bool
        Whether a load that fails leaves all variables as they were.
    skip_mismatch : bool
        Whether an object whose own method fails is skipped.
    progress : bool or callable, optional
        As for ``fastassign.load_weights``.
    seconds : mapping of str to float
        The duration of each stage of planning: ``index``, ``match``, ``plan``.
    """

    origin: Origin
    matching: Matching
    options: LoadOptions
    schedule: Schedule
    session: Any
    runtime: Runtime
    atomic: bool = False
    skip_mismatch: bool = False
    progress: bool | Callback | None = None
    seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def nbytes(self) -> int:
        """Bytes that the load reads from the file, decoded."""
        converted = sum(conversion.recipe.nbytes for conversion in self.matching.conversions.values())
        return self.schedule.nbytes + sum(record.nbytes for record in self.matching.hook_records) + converted

    @property
    def staging_bytes(self) -> int:
        """The most host memory that values read but not yet assigned take at any time."""
        return self.schedule.staging_bytes

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """For each device that is reached by TensorFlow's own copy: the missing part and its cost."""
        return self.schedule.fallbacks

    def execute(self, progress: bool | Callback | None = None) -> Report:
        """Carry the plan out.

        Parameters
        ----------
        progress : bool or callable, optional
            As for ``fastassign.load_weights``.

        Raises
        ------
        Changed (OSError)
            The file was written to or replaced since the plan was made.
        Truncated, ReadFailed (OSError)
            Reading failed; the error's ``assigned`` names the variables that have new values already.
        """
        from fastassign.assigning.execute import execute  # imports TensorFlow

        with reporting(self.progress if progress is None else progress) as callback:
            return execute(self, callback)

    def reading_first(self) -> Plan:
        """Return the same plan with everything read before the first variable is assigned.

        Raises
        ------
        Budget (MemoryError)
            The values together do not fit into ``options.max_staging_bytes``.
        """
        try:
            return replace(self, schedule=reading_first(self.schedule, self.matching, self.options))
        except FastAssignError as error:
            raise self.origin.name_in(error) from None

    def rows(self) -> list[tuple[str, str, str, str, str, int]]:
        """Return a (variable, shape, dtype, route, record, bytes) row for every variable, in the order of the file."""
        rows = [
            (p.assignment.target.name, str(p.assignment.target.shape), p.assignment.target.dtype, _describe(p),
             p.assignment.record.key, p.nbytes)
            for p in self.schedule.placements
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
        """Show the plan as a table, followed by the leftovers on both sides."""
        schedule = self.schedule
        rows = [(name, shape, dtype, route, key) for name, shape, dtype, route, key, _ in self.rows()]
        reads = sum(len(batch.reads) for batch in schedule.batches)
        lines = [
            f"{len(rows)} tensors, {self.nbytes} bytes in {reads} reads, at most {schedule.staging_bytes} bytes staged"
        ]
        lines += [
            f"{lane.device}: {lane.slots} slots of {lane.slot_bytes} bytes, at most {lane.peak_bytes} bytes of device "
            "memory beyond the variables"
            for lane in schedule.lanes
        ]
        lines += [f"{route}: {why}" for route, why in schedule.reasons.items()]
        for label, items in self._leftovers():
            lines += [f"{label}: {item}" for item in items]
        head = ("variable", "shape", "dtype", "route", "from")
        return "\n".join([table(head, rows, names=(0, 4)), *map(printable, lines)])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        schedule, names = self.schedule, ("variable", "shape", "dtype", "route", "record", "bytes")
        data: dict[str, Any] = {
            "file": str(self.origin.path),
            "library": self.matching.library,
            "layout": self.matching.layout,
            "bytes": self.nbytes,
            "reads": sum(len(batch.reads) for batch in schedule.batches),
            "window_bytes": schedule.window_bytes,
            "staging_bytes": schedule.staging_bytes,
            "lanes": [{**asdict(lane), "ring_bytes": lane.ring_bytes} for lane in schedule.lanes],
            "reasons": dict(schedule.reasons),
            "atomic": self.atomic,
            "read_first": schedule.read_first,
            "tensors": [dict(zip(names, row, strict=True)) for row in self.rows()],
        }
        data.update({label.replace(" ", "_"): list(items) for label, items in self._leftovers()})
        json.dumps(data)  # raises here, not where the caller writes the data
        return data

    def _leftovers(self) -> list[tuple[str, Sequence[str]]]:
        matching = self.matching
        return [
            ("fallback", self.fallbacks),
            ("skipped", [*matching.skipped, *(f"{each.obj}: {each.error}" for each in matching.failures)]),
            ("repaired", matching.repaired),
            ("missing in the file", [target.name for target in matching.missing]),
            ("unexpected in the file", [record.key for record in matching.unexpected]),
        ]


def _describe(placement: Placement) -> str:
    assignment = placement.assignment
    if assignment.fit == "cast":
        return f"{placement.route} (cast from {assignment.record.dtype})"
    if assignment.record.detail:
        return f"{placement.route} ({assignment.record.detail})"
    return placement.route
