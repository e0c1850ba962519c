"""A load, decided in every detail before the first byte is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastassign.catalog.memory import MemoryCatalog
from fastassign.catalog.open import Catalog
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Budget, Refused
from fastassign.matching.assignment import Assignment, Matching
from fastassign.options import LoadOptions
from fastassign.planning.coalesce import Read, Span, coalesce, overlapping, split_batches
from fastassign.progress import Callback, reporting
from fastassign.report import Report, printable

# How values get into a variable.
# "owned": into a tensor that TensorFlow allocated, which then becomes the variable's.
# "arena": the same, but one allocation shared by many small variables.
# "assign": into a host array, and from there by the library's own assign: casts, distributed variables.
# "feed": into host memory that a TensorFlow 1 session is fed with.
# "hook": by a layer's own load_own_variables; "convert": through tf_keras' conversion of old layouts.
Route = Literal["owned", "arena", "assign", "feed", "hook", "convert"]

# Small variables are allocated together up to this size: enough to make the allocation cheap, little enough that
# the first variables of a batch are assigned while the next batch is read.
BATCH_BYTES = 8 << 20

# What a session is fed with at once. Each set costs the first load an executor, a few milliseconds and more in a large
# graph; later runs cost 50 microseconds, and begin while the next set is read.
FEED_BYTES = 32 << 20

# TensorFlow aborts the process when it computes on a buffer that is not aligned to this.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where one variable's new value is built.

    Attributes
    ----------
    assignment : Assignment
        Record and target.
    route : Route
        How the value gets into the variable.
    nbytes : int
        Bytes of the value as it stands in the file, decoded.
    arena_bytes : int
        Bytes of its place in the batch's arena, the step to the next multiple of 64 included; 0 if it has none.
    staged_bytes : int
        Bytes of its buffers.
    """

    assignment: Assignment
    route: Route
    nbytes: int
    arena_bytes: int
    staged_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Variables that are allocated, read and assigned together.

    Attributes
    ----------
    placements : tuple of Placement
        The variables.
    reads : tuple of Read
        How their bytes come from the file; pieces refer to ``placements`` by position.
    arena_starts : tuple of int
        For placements of the routes ``"arena"`` and ``"feed"``: the first byte in the batch's arena, a multiple
        of 64.
    arena_bytes : int
        Bytes of the arena.
    nbytes : int
        Bytes of all values.
    staged_bytes : int
        Bytes of all buffers.
    """

    placements: tuple[Placement, ...]
    reads: tuple[Read, ...]
    arena_starts: tuple[int, ...]
    arena_bytes: int
    nbytes: int
    staged_bytes: int


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
        return sum(batch.nbytes for batch in self.batches) + sum(record.nbytes for record in self.library_records)

    @property
    def library_records(self) -> list[TensorRecord]:
        """Records that go through the library's own code: hooks and conversions."""
        hooked = [record for hook in self.matching.hooks for record in hook.records.values()]
        return hooked + [record for conversion in self.matching.conversions for record in conversion.records]

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
        least = max(sum(batch.staged_bytes for batch in self.batches) + self.copied_bytes, self.staging_bytes)
        if least > self.options.max_staging_bytes:
            what = "all tensors together, which are read before the first is assigned"
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
        for conversion in self.matching.conversions:
            rows += [(conversion.name, str(r.shape), "", "convert", r.key, r.nbytes) for r in conversion.records]
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
    seconds: dict[str, float] | None = None,
    executor: Callable[..., Report] | None = None,
    progress: bool | Callback | None = None,
) -> Plan:
    """Plan a load.

    Raises
    ------
    Budget
        A tensor (or, with ``atomic``, all of them) does not fit into ``options.max_staging_bytes``.
    Refused
        Two tensors of the load share bytes of the file.
    """
    assignments = list(matching.assignments.values())
    if "overlap" not in options.allow:
        _check_overlaps(catalog, assignments)
    placements = [_place(assignment, options) for assignment in assignments]
    limit, library = options.max_staging_bytes, _library_bytes(matching)
    # The library's own assign makes two copies of a value on its way, one variable at a time.
    copied = max((2 * p.nbytes for p in placements if p.route == "assign"), default=0)
    alone = max(placements, key=lambda p: p.staged_bytes, default=None)
    least = max(copied + (0 if alone is None else alone.staged_bytes), library)
    together = max(copied + sum(p.staged_bytes for p in placements), library)
    if atomic and together > limit:
        raise _over_budget(catalog, together, limit, "all tensors together (atomic=True)")
    if least > limit:
        if least == library or alone is None:
            raise _over_budget(catalog, least, limit, "the weights that go through the library's own code")
        raise _over_budget(catalog, least, limit, "the largest tensor", alone.assignment.record.key)
    room = max(limit - copied, 1)
    batches = tuple(_batches(placements, options, room))
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
    return replace(plan, read_first=True, staging_bytes=together) if atomic else plan


def _over_budget(
    catalog: Catalog | MemoryCatalog, least: int, limit: int, what: str, tensor: str | None = None
) -> Budget:
    return Budget(
        f"the load needs {least} bytes of host memory for {what}, max_staging_bytes is {limit}",
        file=catalog.path,
        tensor=tensor,
        hint=f"LoadOptions(max_staging_bytes={least}) is the least that works",
    )


def route_of(assignment: Assignment, nbytes: int, options: LoadOptions) -> Route:
    """Choose how one value of ``nbytes`` bytes gets into its variable."""
    if assignment.target.graph is not None:
        return "feed"
    if assignment.target.resource is None or assignment.fit == "cast":
        return "assign"
    return "arena" if nbytes <= options.arena_bytes else "owned"


def _place(assignment: Assignment, options: LoadOptions) -> Placement:
    nbytes = assignment.record.nbytes
    route = route_of(assignment, nbytes, options)
    if route not in {"arena", "feed"}:
        return Placement(assignment, route, nbytes, 0, nbytes)
    if assignment.fit == "cast":
        # As it stands in the file, and as the variable takes it.
        room = _aligned(assignment.target.nbytes)
        return Placement(assignment, route, nbytes, room, room + nbytes)
    room = _aligned(nbytes)
    return Placement(assignment, route, nbytes, room, room)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _batches(placements: Sequence[Placement], options: LoadOptions, room: int) -> list[Batch]:
    stored = sorted(
        (p for p in placements if p.assignment.record.extents), key=lambda p: p.assignment.record.extents[0].offset
    )
    batches = []
    for members in _split(stored, room):
        reads = coalesce(_spans(members), read_bytes=options.read_bytes, gap_bytes=options.gap_bytes)
        batches.append(_batch(members, reads))
    # Arrays, and what a session is fed with at once, are batches too.
    others = [p for p in placements if not p.assignment.record.extents]
    grouped: dict[bool, list[Placement]] = {True: [], False: []}
    for p in others:
        grouped[p.route == "feed" or p.assignment.record.encoding == "array"].append(p)
    batches += [_batch(members, []) for members in _split(grouped[True], room)]
    # Tensors that h5py decodes, and those without elements, are read one by one.
    return batches + [_batch([p], []) for p in grouped[False]]


def _split(placements: Sequence[Placement], room: int) -> Iterator[Sequence[Placement]]:
    is_fed = bool(placements) and placements[0].route == "feed"
    batch_bytes = min(FEED_BYTES if is_fed else BATCH_BYTES, room)
    for positions in split_batches([p.staged_bytes for p in placements], batch_bytes=batch_bytes):
        yield placements[positions.start : positions.stop]


def _spans(placements: Sequence[Placement]) -> list[Span]:
    spans = []
    for owner, placement in enumerate(placements):
        start = 0
        for extent in placement.assignment.record.extents:
            spans.append(Span(owner, extent, start))
            start += extent.nbytes
    return sorted(spans, key=lambda span: span.extent.offset)


def _batch(placements: Sequence[Placement], reads: Sequence[Read]) -> Batch:
    arena = 0
    starts = []
    for placement in placements:
        starts.append(arena)
        arena += placement.arena_bytes
    return Batch(
        placements=tuple(placements),
        reads=tuple(reads),
        arena_starts=tuple(starts),
        arena_bytes=arena,
        nbytes=sum(p.nbytes for p in placements),
        staged_bytes=sum(p.staged_bytes for p in placements),
    )


def _library_bytes(matching: Matching) -> int:
    hooks = [sum(record.nbytes for record in hook.records.values()) for hook in matching.hooks]
    # Objects load themselves one by one; conversions are all read before the first is assigned.
    converted = sum(record.nbytes for conversion in matching.conversions for record in conversion.records)
    return max(*hooks, converted, 0)


def _check_overlaps(catalog: Catalog | MemoryCatalog, assignments: Sequence[Assignment]) -> None:
    records = {assignment.record.key: assignment.record for assignment in assignments}.values()
    pair = overlapping([(extent, record.key) for record in records for extent in record.extents])
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
