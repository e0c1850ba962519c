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

# Small values are fed to a session together up to this size. Each set of variables costs the first load an executor: a
# few milliseconds, more in a large graph. Later runs cost 50 microseconds, and begin while the next set is read.
FEED_BYTES = 32 << 20

# A row of the table that a kernel works from: three integers of 8 bytes.
TABLE_ROW_BYTES = 24


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Variables that are allocated, read and assigned together.

    Attributes
    ----------
    placements : tuple of Placement
        The variables and their routes. If one is ``"fused"``, all are, and share a device and a dtype; if one is
        ``"direct"``, all are, and share a device.
    reads : tuple of Read
        The reads that fetch their bytes; pieces refer to ``placements`` by position.
    arena_starts : tuple of int
        For each placement of the routes ``"arena"``, ``"fused"``, ``"feed"`` and ``"eager"``: its first byte in the
        batch's arena, a multiple of 64.
    arena_bytes : int
        Size of the arena in bytes.
    nbytes : int
        Size of all values in bytes.
    staged_bytes : int
        Size of all buffers on the host in bytes, without slots.
    cut : Cut or None
        For a batch that is ``"fused"`` on a device: the way from the slab to the variables.
    head_bytes : int
        Bytes at the beginning of the arena that hold the table of a kernel.
    device_bytes : int
        The most bytes that tensors made on the device take: those that the values arrive in, those that they are cast
        to, and the copies made in cutting them up.
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
        """The device of the lane that the values take; empty for routes without one."""
        return self.placements[0].lane

    @property
    def casts(self) -> bool:
        """Whether the values are cast on the device."""
        return self.placements[0].casts

    @property
    def window_bytes(self) -> int:
        """The bytes that it takes of its window: the window of its lane, or the host's."""
        return self.device_bytes if self.lane else self.staged_bytes

    @property
    def jobs(self) -> int:
        """The number of slots of a lane that it fills."""
        return 1 if self.route == "fused" else len(self.reads)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """The limits on the size of a batch.

    Attributes
    ----------
    room : int
        The most staged bytes of a batch of several variables.
    slot_bytes : int
        Size of a slot in bytes.
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
        The sizes of reads and gaps, and the way in which slabs on devices are cut up.
    sizes : BatchLimits
        The limits on the size of a batch.
    devices : Devices
        The devices that we can copy to.
    repeated : bool
        Whether the load will be repeated.

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
    # Arrays in memory, and values that a session is fed with in one run, make batches too.
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
    # A tensor has one device and one dtype.
    target = placement.assignment.target
    if placement.route == "fused":
        return (target.device, target.dtype, placement.casts)
    return (placement.lane, placement.casts)


def _split(placements: Sequence[Placement], sizes: BatchLimits) -> Iterator[Sequence[Placement]]:
    if not placements:
        return
    first = placements[0]
    if first.lane and first.route == "fused":
        # A row of the table for each, and the bytes that round the table up.
        steps = [p.arena_bytes + TABLE_ROW_BYTES for p in placements]
        batch_bytes = sizes.slot_bytes - ALIGNMENT
    elif first.lane:
        # A slot must hold whole elements of a value that is cast, so no read holds two values.
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
    """Pack values that go to a device in one copy, those of one shape next to each other."""
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
    # A slot holds a read as it stands in the file. If a kernel casts it, a table of one row comes first; if it is read
    # past the page cache, the rest of its first page and of its last comes with it.
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
    # Values are cast into a second slab.
    slab = sum(p.slab_bytes for p in placements) if placements[0].casts else 0
    # One copy cuts off a value that does not fill its place, another takes those of one shape apart.
    copied = sum(nbytes for p, nbytes in zip(placements, values, strict=True) if nbytes < p.slab_bytes)
    return arena + slab + 2 * copied


def run_lengths(placements: Sequence[Placement]) -> list[tuple[tuple[int, ...], int]]:
    """Return the shapes of a slab's variables in order, each with the number of neighbours that share it."""
    shapes = (p.assignment.target.shape for p in placements)
    return [(shape, sum(1 for _ in same)) for shape, same in groupby(shapes)]
