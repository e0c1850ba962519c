"""Open lanes: the way to a device during a load, with a stream of our own and a ring of slots."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from fastassign.assigning.device import tensors
from fastassign.assigning.work import Work
from fastassign.devices.driver import Driver, Fence, Missing, Stream
from fastassign.devices.ring import Ring, Slot
from fastassign.devices.staging import Locker, StagingBuffer, StagingPool
from fastassign.errors import DeviceFailed, NotPageLocked, annotate
from fastassign.planning import lanes
from fastassign.runtime import Runtime


@dataclass(frozen=True, slots=True)
class SlotMemory:
    """The memory that slots are made of.

    Attributes
    ----------
    pool : StagingPool
        The pool that it comes from.
    page_lock : bool or None
        See ``DeviceOptions``.
    limit_bytes : int
        The most host memory for slots in bytes, the idle memory of the pool included.
    """

    pool: StagingPool
    page_lock: bool | None
    limit_bytes: int


class OpenLane:
    """An open lane.

    Parameters
    ----------
    planned : fastassign.planning.lanes.Lane
        The lane of the schedule.
    driver : Driver
        The driver of the device.
    slots : SlotMemory
        The memory that its slots are made of.

    Attributes
    ----------
    device : str
        TensorFlow's full name of the device.
    stream : Stream
        The stream that copies go through.
    ring : Ring
        The ring of slots that they come from.
    fallback : str
        The reason why the ring is not page-locked; empty if it is, or if that was not asked for.
    """

    def __init__(self, planned: lanes.Lane, driver: Driver, slots: SlotMemory) -> None:
        self.device, self.fallback = planned.device, ""
        probe = tensors.empty((16,), "float32", planned.device)
        ordinal = driver.ordinal_of(planned.device, tensors.address(probe, planned.device))
        # Each twin takes the bytes of one slot, and the device casts from there.
        count = planned.slots if planned.staged else 0
        self._twins = [tensors.empty((planned.slot_bytes,), "uint8", self.device) for _ in range(count)]
        self._twin_addresses = [tensors.address(twin, self.device) for twin in self._twins]
        self.stream = driver.stream(ordinal)
        try:
            self.ring = self._ring(planned, Locker(driver, ordinal), slots)
        except BaseException as error:
            _close(self.stream, self.device, error)
            raise

    def _ring(self, planned: lanes.Lane, locker: Locker, slots: SlotMemory) -> Ring:
        def lend(locked_by: Locker | None) -> StagingBuffer:
            owner = f"a load to {self.device}"
            return slots.pool.lease(planned.slot_bytes, owner=owner, locker=locked_by, limit_bytes=slots.limit_bytes)

        if slots.page_lock is not False:
            try:
                return Ring(partial(lend, locker), planned.slots, self._mark)
            except NotPageLocked as error:
                if slots.page_lock:
                    raise
                slots.pool.release()  # the slots that were locked are too few, and would lie idle beside the others
                self.fallback = (
                    f"{self.device}: {error}: copies go through memory that is not page-locked, which the driver "
                    "copies once more on the way"
                )
        return Ring(partial(lend, None), planned.slots, self._mark)

    def twin(self, slot: Slot) -> int:
        """Return the address of a slot's twin on the device."""
        return self._twin_addresses[slot.number]

    def close(self) -> None:
        """Wait for the copies under way, and give the slots back.

        Raises
        ------
        DeviceFailed
            The device failed meanwhile.
        """
        try:
            self.ring.close()
        finally:
            self._twins.clear()
            self.stream.close()

    def _mark(self) -> Fence:
        with self.stream as stream:
            return stream.record()


class OpenLanes:
    """The open lanes of one execution, by device; a context, at the end of which no copy is under way.

    Parameters
    ----------
    work : Work
        The load whose schedule has the lanes.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._open: dict[str, OpenLane] = {}

    def __enter__(self) -> OpenLanes:
        """Open all lanes.

        Raises
        ------
        DeviceFailed, DeviceMemory, NotPageLocked, Budget
            A lane can't be opened.
        """
        schedule, options, runtime = self._work.schedule, self._work.options, self._work.runtime
        # The buffers on the host count too.
        beside = schedule.staging_bytes - sum(lane.ring_bytes for lane in schedule.lanes)
        slots = SlotMemory(runtime.staging, options.device.page_lock, options.max_staging_bytes - beside)
        try:
            for planned in schedule.lanes:
                self._open[planned.device] = OpenLane(planned, _driver(runtime), slots)
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all lanes."""
        self._close(error)

    def __getitem__(self, device: str) -> OpenLane:
        """Return the open lane to a device."""
        return self._open[device]

    @property
    def fallbacks(self) -> list[str]:
        """The reasons why rings are not page-locked."""
        return [lane.fallback for lane in self._open.values() if lane.fallback]

    def _close(self, error: BaseException | None) -> None:
        with ExitStack() as stack:
            for lane in self._open.values():
                stack.callback(_close, lane, lane.device, error)
        self._open.clear()


def _close(lane_or_stream: OpenLane | Stream, device: str, error: BaseException | None) -> None:
    """Close a lane or a stream; if there is an error already, a failure becomes a note of it."""
    try:
        lane_or_stream.close()
    except DeviceFailed as failure:
        if error is None:
            raise
        annotate(error, f"{device}, while the load was stopped: {failure}")


def _driver(runtime: Runtime) -> Driver:
    driver = runtime.find_driver()
    if isinstance(driver, Missing):  # the plan was made in a process with a driver, and is executed without one
        raise DeviceFailed(f"the plan needs a device that can't be reached: {driver.reason}", hint=driver.hint)
    return driver
