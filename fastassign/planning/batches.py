"""Variables that are allocated, read and assigned together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from fastassign.options import LoadOptions
from fastassign.planning.coalesce import Read, Span, coalesce, split_batches
from fastassign.planning.routes import Placement, Route

# Small variables are allocated together up to this size: enough to make the allocation cheap, little enough that
# the first variables of a batch are assigned while the next batch is read.
BATCH_BYTES = 8 << 20

# What a session is fed with at once. Each set costs the first load an executor, a few milliseconds and more in a large
# graph; later runs cost 50 microseconds, and begin while the next set is read.
FEED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Variables that are allocated, read and assigned together.

    Attributes
    ----------
    placements : tuple of Placement
        The variables. In a batch of the route ``"fused"`` all are, of one device and one dtype.
    reads : tuple of Read
        How their bytes come from the file; pieces refer to ``placements`` by position.
    arena_starts : tuple of int
        For placements of the routes ``"arena"``, ``"fused"`` and ``"feed"``: the first byte in the batch's arena, a
        multiple of 64.
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

    @property
    def route(self) -> Route:
        """The route of the first placement: that of all where it is ``"fused"`` or ``"feed"``."""
        return self.placements[0].route


def make_batches(placements: Sequence[Placement], options: LoadOptions, room: int) -> tuple[Batch, ...]:
    """Cut a load into batches.

    Parameters
    ----------
    placements : sequence of Placement
        All variables.
    options : LoadOptions
        The sizes of reads and gaps.
    room : int
        The most staged bytes of a batch, where it has more than one variable.

    Returns
    -------
    tuple of Batch
        In the order of the file.
    """
    stored = sorted((p for p in placements if p.assignment.record.extents), key=_offset)
    groups: dict[Hashable, list[Placement]] = {}
    for placement in stored:
        groups.setdefault(_group(placement), []).append(placement)
    batches = []
    for group in groups.values():
        for members in _split(group, room):
            reads = coalesce(_spans(members), read_bytes=options.read_bytes, gap_bytes=options.gap_bytes)
            batches.append(_batch(members, reads))
    batches.sort(key=lambda batch: _offset(batch.placements[0]))
    # Arrays, and what a session is fed with at once, are batches too.
    together: list[Placement] = []
    alone: list[Placement] = []
    for p in placements:
        if not p.assignment.record.extents:
            (together if p.route == "feed" or p.assignment.record.encoding == "array" else alone).append(p)
    batches += [_batch(members, []) for members in _split(together, room)]
    # Tensors that h5py decodes, and those without elements, are read one by one.
    return (*batches, *(_batch([p], []) for p in alone))


def _offset(placement: Placement) -> int:
    return placement.assignment.record.extents[0].offset


def _group(placement: Placement) -> Hashable:
    # One tensor is of one device and dtype.
    target = placement.assignment.target
    return (target.device, target.dtype) if placement.route == "fused" else ()


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
