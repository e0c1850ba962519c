"""The schedule of a load: its reads, their order, and the memory that they fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Schedule:
    """The schedule of a load.

    Attributes
    ----------
    batches : tuple of Batch
        The work, in the order of the file.
    lanes : tuple of Lane
        The ways to devices that we copy to ourselves.
    threads : int
        Number of threads that read.
    window_bytes : int
        The most bytes that are read ahead of the assignments.
    staging_bytes : int
        The most host memory that values read but not yet assigned take at any time, in bytes.
    copied_bytes : int
        The part of ``staging_bytes`` that the library's own assign takes for copies.
    read_first : bool
        Whether all values are read before the first is assigned.
    fallbacks : tuple of str
        For each device that is reached by TensorFlow's own copy: the missing part and its cost.
    reasons : mapping of str to str
        For each route to a device: the reason why values take it.
    """

    batches: tuple[Batch, ...]
    lanes: tuple[Lane, ...]
    threads: int
    window_bytes: int
    staging_bytes: int
    copied_bytes: int
    read_first: bool
    fallbacks: tuple[str, ...]
    reasons: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Size of all batches in bytes, as they stand in the file."""
        return sum(batch.nbytes for batch in self.batches)

    @property
    def placements(self) -> list[Placement]:
        """The variables of all batches, in the order of the file."""
        return [placement for batch in self.batches for placement in batch.placements]


def make_schedule(
    matching: Matching,
    options: LoadOptions,
    *,
    atomic: bool = False,
    repeated: bool = False,
    devices: Devices = NO_DEVICES,
) -> Schedule:
    """Schedule a load.

    Parameters
    ----------
    matching : Matching
        The records and the variables that they go into.
    options : LoadOptions
        The options of the load.
    atomic : bool
        Whether all values are read before the first is assigned.
    repeated : bool
        Whether the load will be repeated.
    devices : Devices
        The devices that we can copy to.

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
        check_overlaps(matching)
    slot_bytes = whole_pages(options.device.slot_bytes)

    def placed(assignment: Assignment) -> Placement:
        return place(assignment, options, repeated=repeated, devices=devices, slot_bytes=slot_bytes)

    placements = [placed(assignment) for assignment in matching.assignments.values()]
    limit, copied = options.max_staging_bytes, copied_bytes(placements)
    beside = check_budget(matching, placements, limit, copied=copied, atomic=atomic)
    rings = RingBudget.of(options, limit - beside, len({p.lane for p in placements if p.lane}))
    if rings.slot_bytes < slot_bytes:
        # Fewer values fit into a smaller slot: those that take a lane are placed again.
        slot_bytes = rings.slot_bytes
        placements = [placed(p.assignment) if p.lane else p for p in placements]
    room = max(limit - copied - rings.nbytes, 1)
    sizes = BatchLimits(room=room, slot_bytes=rings.slot_bytes)
    batches = make_batches(placements, options, sizes, devices, repeated=repeated)
    missing = fallbacks(placements, options, devices)
    check_choice(batches, options, devices, missing)
    lanes = lay_lanes(batches, rings, options, devices)
    window = min(options.window_bytes, room)
    hosted = [batch.staged_bytes for batch in batches if not batch.lane]
    staging = max(min(sum(hosted), max(window, *hosted, 0)) + copied, hook_bytes(matching))
    schedule = Schedule(
        batches=batches,
        lanes=lanes,
        threads=options.device.threads if lanes else options.threads,
        window_bytes=window,
        staging_bytes=staging + sum(lane.ring_bytes for lane in lanes),
        copied_bytes=copied,
        read_first=False,
        fallbacks=missing,
        reasons=reasons(batches, lanes, options, repeated=repeated),
    )
    return reading_first(schedule, matching, options) if atomic else schedule


def reading_first(schedule: Schedule, matching: Matching, options: LoadOptions) -> Schedule:
    """Return the same schedule with everything read before the first variable is assigned.

    Parameters
    ----------
    schedule, matching, options
        The schedule, and the matching and options that it was made from.

    Raises
    ------
    Budget
        The values together do not fit into ``options.max_staging_bytes``.
    """
    limit, lanes, placements = options.max_staging_bytes, schedule.lanes, schedule.placements
    together = together_bytes(placements, matching, schedule.copied_bytes)
    if together + sum(lane.slot_bytes for lane in lanes) > limit:
        beside = beside_bytes(placements, matching, schedule.copied_bytes)
        raise over_budget(least_for_rings(options, beside, together, len(lanes)), limit, TOGETHER)
    widened = without_window(lanes, schedule.batches, limit - together)
    staging = together + sum(lane.ring_bytes for lane in widened)
    return replace(schedule, read_first=True, staging_bytes=staging, lanes=widened)
