"""The host memory that lanes take: slots, rings, and the windows behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastassign.options import LoadOptions
from fastassign.planning.batches import Batch
from fastassign.planning.lanes import PAGE_BYTES, Device, Devices, Lane, whole_pages

# The least size of a slot: a read past the page cache may need only a part of its first page and of its last.
MIN_SLOT_BYTES = 4 * PAGE_BYTES

# Slots beyond one for each thread: they are copied to the device while the threads fill the others.
SPARE_SLOTS = 2


@dataclass(frozen=True, slots=True)
class RingBudget:
    """The rings of all lanes: one for each device, all of the same size.

    Attributes
    ----------
    slot_bytes : int
        Size of a slot in bytes, whole pages.
    slots : int
        The most slots in a ring.
    count : int
        Number of rings.
    """

    slot_bytes: int
    slots: int = 1
    count: int = 0

    @property
    def nbytes(self) -> int:
        """Size of all rings in bytes."""
        return self.slot_bytes * self.slots * self.count

    @classmethod
    def of(cls, options: LoadOptions, spare: int, count: int) -> RingBudget:
        """Return rings with as many slots as are of use, or as fit; the parameters are those of ``slot_size``."""
        size = slot_size(options, spare, count)
        if not count:
            return cls(size)
        wanted = -(-options.device.threads // count) + SPARE_SLOTS
        return cls(size, max(1, min(wanted, spare // (size * count))), count)


def slot_size(options: LoadOptions, spare: int, count: int) -> int:
    """Choose the size of a slot.

    Parameters
    ----------
    options : LoadOptions
        The wanted size.
    spare : int
        Host memory that the rings may take, in bytes.
    count : int
        Number of rings.

    Returns
    -------
    int
        Bytes, whole pages: at least ``MIN_SLOT_BYTES``, and otherwise small enough for two slots in each ring, so that
        one is filled while the other is copied.
    """
    wanted = whole_pages(options.device.slot_bytes)
    return max(min(wanted, spare // (2 * count) // PAGE_BYTES * PAGE_BYTES), MIN_SLOT_BYTES) if count else wanted


def least_for_rings(options: LoadOptions, beside: int, together: int, count: int) -> int:
    """Return the least ``max_staging_bytes`` with which a plan can read everything before it assigns.

    With more memory the plan makes larger slots, and each ring keeps one of them: the answer is the point where the
    limit and the need agree.

    Parameters
    ----------
    options : LoadOptions
        The options, whose ``max_staging_bytes`` is too small.
    beside : int
        Bytes that were set aside for the host when the size of a slot was chosen.
    together : int
        Bytes that everything takes, slots aside.
    count : int
        Number of rings.
    """
    least, limit = 0, options.max_staging_bytes
    while limit > least:
        least, limit = limit, together + count * slot_size(options, limit - beside, count)
    return least


def lay_lanes(batches: Sequence[Batch], rings: RingBudget, options: LoadOptions, devices: Devices) -> tuple[Lane, ...]:
    """Plan a lane to each device that batches go to."""
    return tuple(
        _lane(
            devices.reached[name],
            [batch for batch in batches if batch.lane == name],
            rings,
            options.device.window_bytes,
        )
        for name in dict.fromkeys(batch.lane for batch in batches if batch.lane)
    )


def without_window(lanes: Sequence[Lane], batches: Sequence[Batch], spare: int) -> tuple[Lane, ...]:
    """Return lanes that open all batches at once, with the slots that ``spare`` bytes of host memory allow."""
    slots = spare // max(sum(lane.slot_bytes for lane in lanes), 1)
    widened = []
    for lane in lanes:
        own = sum(batch.device_bytes for batch in batches if batch.lane == lane.device)
        fewer = replace(lane, slots=max(1, min(lane.slots, slots)), window_bytes=own)
        widened.append(replace(fewer, peak_bytes=own + _twins(fewer)))
    return tuple(widened)


def _lane(device: Device, batches: Sequence[Batch], rings: RingBudget, window_bytes: int) -> Lane:
    sizes = [batch.device_bytes for batch in batches]
    lane = Lane(
        device=device.name,
        slots=min(rings.slots, sum(batch.jobs for batch in batches)),
        slot_bytes=rings.slot_bytes,
        window_bytes=window_bytes,
        staged=any(batch.casts and batch.route == "direct" for batch in batches),
        peak_bytes=0,
        kernels_missing=device.kernels_missing,
    )
    return replace(lane, peak_bytes=min(sum(sizes), max(window_bytes, *sizes)) + _twins(lane))


def _twins(lane: Lane) -> int:
    return lane.ring_bytes if lane.staged else 0
