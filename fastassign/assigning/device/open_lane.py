"""The way to a device while a load runs: a stream of our own, and a ring of slots."""

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
    """Where the memory of slots comes from.

    Attributes
    ----------
    pool : StagingPool
        The pool.
    page_lock : bool or None
        See ``DeviceOptions``.
    limit_bytes : int
        The most host memory for slots, idle memory of the pool included.
    """

    pool: StagingPool
    page_lock: bool | None
    limit_bytes: int


class OpenLane:
    """A lane that is open.

    Parameters
    ----------
    planned : fastassign.planning.lanes.Lane
        What the plan lays down.
    driver : Driver
        The driver of the device.
    slots : SlotMemory
        Where the memory of the slots comes from.

    Attributes
    ----------
    device : str
        TensorFlow's full name of the device.
    stream : Stream
        What copies go through.
    ring : Ring
        What they come from.
    fallback : str
        Why the ring is not page-locked; empty if it is, or nobody asked.
    """

    def __init__(self, planned: lanes.Lane, driver: Driver, slots: SlotMemory) -> None:
        self.device, self.fallback = planned.device, ""
        probe = tensors.empty((16,), "float32", planned.device)
        ordinal = driver.ordinal_of(planned.device, tensors.address(probe, planned.device))
        # Memory on the device where what a slot holds is cast from.
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
        def lend(who: Locker | None) -> StagingBuffer:
            owner = f"a load to {self.device}"
            return slots.pool.lease(planned.slot_bytes, owner=owner, locker=who, limit_bytes=slots.limit_bytes)

        if slots.page_lock is not False:
            try:
                return Ring(partial(lend, locker), planned.slots, self._mark)
            except NotPageLocked as error:
                if slots.page_lock:
                    raise
                slots.pool.release()  # what was locked is too little, and would lie beside what serves in its place
                self.fallback = (
                    f"{self.device}: {error}: copies go through memory that is not page-locked, which the driver "
                    "copies once more on the way"
                )
        return Ring(partial(lend, None), planned.slots, self._mark)

    def twin(self, slot: Slot) -> int:
        """Return the address of a slot's twin on the device."""
        return self._twin_addresses[slot.number]

    def close(self) -> None:
        """Wait for what is under way, and give back what was leased.

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
    """The lanes of one execution, by device; a context, at whose end nothing is under way any more.

    Parameters
    ----------
    work : Work
        The load whose schedule lays them down.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._open: dict[str, OpenLane] = {}

    def __enter__(self) -> OpenLanes:
        """Open all.

        Raises
        ------
        DeviceFailed, DeviceMemory, NotPageLocked, Budget
            One can't be opened.
        """
        schedule, options, runtime = self._work.schedule, self._work.options, self._work.runtime
        # What the host stages beside the slots counts too.
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
        """Close all."""
        self._close(error)

    def __getitem__(self, device: str) -> OpenLane:
        """Return that of a device."""
        return self._open[device]

    @property
    def fallbacks(self) -> list[str]:
        """What could not be had."""
        return [lane.fallback for lane in self._open.values() if lane.fallback]

    def _close(self, error: BaseException | None) -> None:
        with ExitStack() as stack:
            for lane in self._open.values():
                stack.callback(_close, lane, lane.device, error)
        self._open.clear()


def _close(what: OpenLane | Stream, device: str, error: BaseException | None) -> None:
    """Close something; where an error is under way already, failures are notes of that."""
    try:
        what.close()
    except DeviceFailed as failure:
        if error is None:
            raise
        annotate(error, f"{device}, while the load was stopped: {failure}")


def _driver(runtime: Runtime) -> Driver:
    driver = runtime.find_driver()
    if isinstance(driver, Missing):  # a plan that was made where there is one, and carried out where there is none
        raise DeviceFailed(f"the plan goes to a device that can't be reached: {driver.reason}", hint=driver.hint)
    return driver
