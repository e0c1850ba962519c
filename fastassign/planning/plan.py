"""A load, decided in every detail before the first byte is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastassign.catalog.memory import MemoryCatalog
from fastassign.catalog.open import Catalog
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Budget, Refused
from fastassign.matching.assignment import Matching
from fastassign.options import LoadOptions
from fastassign.planning.batches import Batch, make_batches
from fastassign.planning.coalesce import overlapping
from fastassign.planning.routes import Placement, place
from fastassign.progress import Callback, reporting
from fastassign.report import Report, printable


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
    atomic: bool
    read_first: bool
    seconds: dict[str, float] = field(default_factory=dict)
    executor: Callable[..., Report] | None = None
    progress: bool | Callback | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the load reads from the file, decoded."""
        converted = sum(conversion.recipe.nbytes for conversion in self.matching.conversions.values())
        return sum(batch.nbytes for batch in self.batches) + sum(r.nbytes for r in self.library_records) + converted

    @property
    def library_records(self) -> list[TensorRecord]:
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
        # What goes through the library's own code is read before too.
        library = sum(record.nbytes for record in self.library_records)
        # Of what is converted, all results, and the sources of one.
        conversions = self.matching.conversions.values()
        sources = max((each.staged_bytes - each.target.nbytes for each in conversions), default=0)
        library += sum(each.target.nbytes for each in conversions)
        least = sum(batch.staged_bytes for batch in self.batches) + max(self.copied_bytes, sources) + library
        if least > self.options.max_staging_bytes:
            what = "all tensors together, which are read before the first is assigned"
            what += " (atomic=True)" if self.atomic else ""
            raise _over_budget(self.catalog, least, self.options.max_staging_bytes, what)
        return replace(self, read_first=True, staging_bytes=least)

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
        head = ("variable", "shape", "dtype", "route", "from")
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
        ]
        reads = sum(len(batch.reads) for batch in self.batches)
        lines.append(
            f"{len(rows)} tensors, {self.nbytes} bytes in {reads} reads, at most {self.staging_bytes} bytes staged"
        )
        for label, items in self._leftovers():
            lines += [f"{label}: {item}" for item in items]
        return "\n".join(map(printable, lines))

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
            "atomic": self.atomic,
            "read_first": self.read_first,
            "tensors": [dict(zip(names, row, strict=True)) for row in self.rows()],
        }
        data.update({label.replace(" ", "_"): list(items) for label, items in self._leftovers()})
        json.dumps(data)  # what is returned can be written, always
        return data

    def _leftovers(self) -> list[tuple[str, Sequence[str]]]:
        matching = self.matching
        return [
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
    seconds: dict[str, float] | None = None,
    executor: Callable[..., Report] | None = None,
    progress: bool | Callback | None = None,
) -> Plan:
    """Plan a load; ``repeated`` says that the plan will be carried out again and again.

    Raises
    ------
    Budget
        A tensor (or, with ``atomic``, all of them) does not fit into ``options.max_staging_bytes``.
    Refused
        Two tensors of the load share bytes of the file.
    """
    assignments = list(matching.assignments.values())
    if "overlap" not in options.allow:
        _check_overlaps(catalog, matching)
    placements = [place(assignment, options, repeated=repeated) for assignment in assignments]
    limit, library = options.max_staging_bytes, _library_bytes(matching)
    # The library's own assign makes two copies of a value on its way, one variable at a time.
    copied = max((2 * p.nbytes for p in placements if p.route == "assign"), default=0)
    alone = max(placements, key=lambda p: p.staged_bytes, default=None)
    least = max(copied + (0 if alone is None else alone.staged_bytes), library)
    if least > limit and not atomic:  # which needs more, and says so below
        if least == library or alone is None:
            raise _over_budget(
                catalog, least, limit, "the weights that go through the library's own code, or are converted"
            )
        raise _over_budget(catalog, least, limit, "the largest tensor", alone.assignment.record.key)
    room = max(limit - copied, 1)
    batches = make_batches(placements, options, room)
    window = min(options.window_bytes, room)
    largest = max((batch.staged_bytes for batch in batches), default=0)
    staging = min(sum(batch.staged_bytes for batch in batches), max(window, largest))
    plan = Plan(
        catalog=catalog,
        matching=matching,
        options=options,
        batches=batches,
        window_bytes=window,
        staging_bytes=max(staging + copied, library),
        copied_bytes=copied,
        atomic=atomic,
        read_first=False,
        seconds=seconds or {},
        executor=executor,
        progress=progress,
    )
    return plan.reading_first() if atomic else plan


def _over_budget(
    catalog: Catalog | MemoryCatalog, least: int, limit: int, what: str, tensor: str | None = None
) -> Budget:
    return Budget(
        f"the load needs {least} bytes of host memory for {what}, max_staging_bytes is {limit}",
        file=catalog.path,
        tensor=tensor,
        hint=f"LoadOptions(max_staging_bytes={least}) is the least that works",
    )


def _library_bytes(matching: Matching) -> int:
    hooks = [sum(record.nbytes for record in hook.records.values()) for hook in matching.hooks]
    # Objects load themselves one by one, and values are converted one by one.
    converted = [conversion.staged_bytes for conversion in matching.conversions.values()]
    return max(*hooks, *converted, 0, 0)


def _check_overlaps(catalog: Catalog | MemoryCatalog, matching: Matching) -> None:
    records = {assignment.record.key: assignment.record for assignment in matching.assignments.values()}
    for conversion in matching.conversions.values():
        records.update((record.key, record) for record in conversion.recipe.records)
    pair = overlapping([(extent, record.key) for record in records.values() for extent in record.extents])
    if pair is not None:
        raise Refused(
            f"the datasets {pair[0]} and {pair[1]} share bytes of the file",
            rule="overlap",
            option='LoadOptions(allow={"overlap"})',
            file=catalog.path,
            tensor=pair[1],
        )


def _describe(placement: Placement) -> str:
    assignment = placement.assignment
    if assignment.fit == "cast":
        return f"{placement.route} (cast from {assignment.record.dtype})"
    if assignment.record.detail:
        return f"{placement.route} ({assignment.record.detail})"
    return placement.route
