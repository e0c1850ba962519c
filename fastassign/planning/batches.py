"""Variables that are allocated, read and assigned together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from fastassign.options import LoadOptions
from fastassign.planning.coalesce import Read, Span, coalesce, split_batches
from fastassign.planning.costs import Cut, shortest
from fastassign.planning.lanes import PAGE_BYTES, Devices
from fastassign.planning.routes import ALIGNMENT, Placement, Route, aligned_size

# Small variables are allocated together up to this size: enough to make the allocation cheap, little enough that
# the first variables of a batch are assigned while the next batch is read.
BATCH_BYTES = 8 << 20

# What a session is fed with at once. Each set costs the first load an executor, a few milliseconds and more in a large
# graph; later runs cost 50 microseconds, and begin while the next set is read.
FEED_BYTES = 32 << 20

# A row of the table that a kernel works by: three integers of 8 bytes.
TABLE_ROW_BYTES = 24


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Variables that are allocated, read and assigned together.

    Attributes
    ----------
    placements : tuple of Placement
        The variables. In a batch of the route ``"fused"`` all are, of one device and one dtype; in one of the route
        ``"direct"`` all are, of one device.
    reads : tuple of Read
        How their bytes come from the file; pieces refer to ``placements`` by position.
    arena_starts : tuple of int
        For placements of the routes ``"arena"``, ``"fused"``, ``"feed"`` and ``"eager"``: the first byte in the batch's
        arena, a multiple of 64.
    arena_bytes : int
        Bytes of the arena.
    nbytes : int
        Bytes of all values.
    staged_bytes : int
        Bytes of all buffers on the host, slots aside.
    cut : Cut or None
        Of a batch that is ``"fused"`` on a device: how the variables get their values from there.
    head_bytes : int
        Bytes at the beginning of the arena that hold the table of a kernel.
    device_bytes : int
        The most bytes of the tensors that are made on the device: what the values arrive in, what they are cast to,
        and what cutting them up copies.
    """

    placements: tuple[Placement, ...]
    reads: tuple[Read, ...]
    arena_starts: tuple[int, ...]
    arena_bytes: int
    nbytes: int
    staged_bytes: int
    cut: Cut | None = None
    head_bytes: int = 0
    device_bytes: int = 0

    @property
    def route(self) -> Route:
        """The route of the first placement: that of all where it is ``"fused"``, ``"direct"`` or ``"feed"``."""
        return self.placements[0].route

    @property
    def lane(self) -> str:
        """The device that the values are copied to by ourselves; empty for the other routes."""
        return self.placements[0].lane

    @property
    def casts(self) -> bool:
        """Whether the values are cast on that device."""
        return self.placements[0].casts

    @property
    def window_bytes(self) -> int:
        """What it takes of the window that it has to fit into: that of its lane, or of the host."""
        return self.device_bytes if self.lane else self.staged_bytes

    @property
    def jobs(self) -> int:
        """How many slots of a lane it fills."""
        return 1 if self.route == "fused" else len(self.reads)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What bounds batches.

    Attributes
    ----------
    room : int
        The most staged bytes of a batch, where it has more than one variable.
    slot_bytes : int
        Bytes of a slot.
    """

    room: int
    slot_bytes: int


def make_batches(
    placements: Sequence[Placement], options: LoadOptions, sizes: BatchLimits, devices: Devices, *, repeated: bool
) -> tuple[Batch, ...]:
    """Cut a load into batches.

    Parameters
    ----------
    placements : sequence of Placement
        All variables.
    options : LoadOptions
        The sizes of reads and gaps, and how slabs on devices are cut.
    sizes : BatchLimits
        Bounds.
    devices : Devices
        The devices that we can copy to.
    repeated : bool
        Whether the load comes again and again.

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
        for members in _split(group, sizes):
            if not members[0].lane:
                reads = coalesce(_spans(members), read_bytes=options.read_bytes, gap_bytes=options.gap_bytes)
                batches.append(_batch(members, reads))
            elif members[0].route == "fused":
                batches.append(_slab(members, options, devices, repeated=repeated))
            else:
                batches.append(_direct(members, options, sizes))
    batches.sort(key=lambda batch: min(map(_offset, batch.placements)))
    # Arrays, and what a session is fed with at once, are batches too.
    together: list[Placement] = []
    alone: list[Placement] = []
    for p in placements:
        if not p.assignment.record.extents:
            (together if p.route == "feed" or p.assignment.record.encoding == "array" else alone).append(p)
    batches += [_batch(members, []) for members in _split(together, sizes)]
    # Tensors that h5py decodes, and those without elements, are read one by one.
    return (*batches, *(_batch([p], []) for p in alone))


def _offset(placement: Placement) -> int:
    return placement.assignment.record.extents[0].offset


def _group(placement: Placement) -> Hashable:
    # One tensor is of one device and dtype.
    target = placement.assignment.target
    if placement.route == "fused":
        return (target.device, target.dtype, placement.casts)
    return (placement.lane, placement.casts)


def _split(placements: Sequence[Placement], sizes: BatchLimits) -> Iterator[Sequence[Placement]]:
    if not placements:
        return
    first = placements[0]
    if first.lane and first.route == "fused":
        # A row of a table for each, and what rounds all of them up.
        steps = [p.arena_bytes + TABLE_ROW_BYTES for p in placements]
        batch_bytes = sizes.slot_bytes - ALIGNMENT
    elif first.lane:
        # The elements of what is cast have to be whole in each slot: no read holds two values.
        steps, batch_bytes = [p.nbytes for p in placements], 0 if first.casts else BATCH_BYTES
    else:
        steps = [p.staged_bytes for p in placements]
        batch_bytes = min(FEED_BYTES if first.route == "feed" else BATCH_BYTES, sizes.room)
    for positions in split_batches(steps, batch_bytes=batch_bytes):
        yield placements[positions.start : positions.stop]


def _spans(placements: Sequence[Placement]) -> list[Span]:
    spans = []
    for owner, placement in enumerate(placements):
        start = 0
        for extent in placement.assignment.record.extents:
            spans.append(Span(owner, extent, start))
            start += extent.nbytes
    return sorted(spans, key=lambda span: span.extent.offset)


def _slab(placements: Sequence[Placement], options: LoadOptions, devices: Devices, *, repeated: bool) -> Batch:
    """Pack values that come to a device in one copy, those of one shape next to each other."""
    shapes: dict[tuple[int, ...], int] = {}
    for p in placements:
        shapes.setdefault(p.assignment.target.shape, len(shapes))
    members = sorted(placements, key=lambda p: shapes[p.assignment.target.shape])
    cut = options.device.cut
    if cut == "auto":
        can_scatter = devices.reached[members[0].lane].has_kernels
        cut = shortest(variables=len(members), runs=len(shapes), repeated=repeated, scatters=can_scatter)
    rows = len(members) if cut == "scatter" else int(members[0].casts)
    reads = coalesce(_spans(members), read_bytes=options.read_bytes, gap_bytes=options.gap_bytes)
    return _batch(members, reads, cut=cut, head_bytes=aligned_size(rows * TABLE_ROW_BYTES))


def _direct(placements: Sequence[Placement], options: LoadOptions, sizes: BatchLimits) -> Batch:
    # A slot holds a read as it stands in the file; where a kernel casts it, a table of one row is before it, and past
    # the page cache the rest of its first and last page is too.
    read_bytes = sizes.slot_bytes
    if placements[0].casts:
        read_bytes = (read_bytes - ALIGNMENT) // ALIGNMENT * ALIGNMENT
    elif options.device.direct_io:
        read_bytes = max(read_bytes - 2 * PAGE_BYTES, PAGE_BYTES)
    return _batch(placements, coalesce(_spans(placements), read_bytes=read_bytes, gap_bytes=options.gap_bytes))


def _batch(
    placements: Sequence[Placement], reads: Sequence[Read], *, cut: Cut | None = None, head_bytes: int = 0
) -> Batch:
    arena = head_bytes
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
        cut=cut,
        head_bytes=head_bytes,
        device_bytes=_device_bytes(placements, arena, cut) if placements[0].lane else 0,
    )


def _device_bytes(placements: Sequence[Placement], arena: int, cut: Cut | None) -> int:
    values = [p.assignment.target.nbytes for p in placements]
    if cut is None:
        return sum(values)
    if cut == "scatter":
        return arena + sum(values)
    # What is cast comes into a slab of its own.
    slab = sum(p.slab_bytes for p in placements) if placements[0].casts else 0
    # A value that does not fill its place is cut off by a copy, and those of one shape are taken apart by another.
    copied = sum(nbytes for p, nbytes in zip(placements, values, strict=True) if nbytes < p.slab_bytes)
    return arena + slab + 2 * copied


def run_lengths(placements: Sequence[Placement]) -> list[tuple[tuple[int, ...], int]]:
    """Return the shapes of a slab's variables, in order, each with how many of it stand one after the other."""
    shapes = (p.assignment.target.shape for p in placements)
    return [(shape, sum(1 for _ in same)) for shape, same in groupby(shapes)]
