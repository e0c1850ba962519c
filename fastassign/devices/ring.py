"""The slots that everything passes through on its way to a device."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fastassign.devices.driver import Fence
from fastassign.devices.staging import StagingBuffer
from fastassign.errors import DeviceFailed

if TYPE_CHECKING:
    import numpy as np


class Slot:
    """Host memory that a thread fills and a device then copies from.

    Parameters
    ----------
    lease : StagingBuffer
        The memory.

    Attributes
    ----------
    number : int
        Its place in the ring.
    memory : numpy.ndarray
        The bytes.
    view : memoryview
        The same, to read into.
    address : int
        Of the first.
    fence : Fence or None
        To be set by who fills it: the mark behind the last copy out of it.
    """

    __slots__ = ("address", "fence", "lease", "memory", "number", "view")

    def __init__(self, number: int, lease: StagingBuffer) -> None:
        self.number, self.lease = number, lease
        self.memory: np.ndarray[Any, Any] = lease.memory
        self.view = lease.memory.data
        self.address = lease.address
        self.fence: Fence | None = None


class Ring:
    """Slots that go round: filled, copied from, and filled again only after the copy is done.

    Parameters
    ----------
    lend : callable
        Lends the memory of one slot.
    count : int
        Slots.
    mark : callable
        Makes a fence behind all copies.
    """

    def __init__(self, lend: Callable[[], StagingBuffer], count: int, mark: Callable[[], Fence]) -> None:
        self._mark = mark
        self._free: list[Slot] = []
        self._copied: deque[Slot] = deque()
        self._changed = threading.Condition()
        self._slots: list[Slot] = []
        try:
            for number in range(count):
                self._slots.append(Slot(number, lend()))
        except BaseException:
            self._give_back(self._slots)
            raise
        self._free.extend(self._slots)

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """Lend a slot to a thread; if it sets ``fence``, nobody gets the slot before that is passed.

        Raises
        ------
        DeviceFailed
            The device failed at what was copied out of the slot before.
        """
        slot = self._take()
        slot.fence = None
        try:
            yield slot
        except BaseException:
            # A thread that is interrupted may leave a copy without its fence.
            if slot.fence is None:
                with suppress(DeviceFailed):  # then nothing is copied any more
                    slot.fence = self._mark()
            raise
        finally:
            with self._changed:
                if slot.fence is None:
                    self._free.append(slot)
                else:
                    self._copied.append(slot)
                self._changed.notify()

    def _take(self) -> Slot:
        with self._changed:
            while not self._free and not self._copied:
                self._changed.wait()
            if self._free:
                return self._free.pop()
            slot = self._copied.popleft()
        if slot.fence is not None:
            try:
                slot.fence.wait()
            except BaseException:
                with self._changed:
                    self._copied.append(slot)
                    self._changed.notify()
                raise
        return slot

    def close(self) -> None:
        """Wait until nothing is copied out of the slots any more, and give their memory back.

        Raises
        ------
        DeviceFailed
            The device failed: it copies nothing any more, and the memory is given back too.
        """
        failure: BaseException | None = None
        fence: Fence | None = None
        is_done = False
        while not is_done:
            try:
                fence = fence or self._mark()
                fence.wait()
                is_done = True
            except Exception as error:  # noqa: BLE001 - raised below, when all is given back
                failure, is_done = error, True
            except BaseException as error:  # noqa: BLE001 - Ctrl-C: the device copies all the same
                failure = error
        self._give_back(self._slots)
        self._slots = []
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # in a circle with its traceback it would keep the device's memory

    @staticmethod
    def _give_back(slots: list[Slot]) -> None:
        for slot in slots:
            slot.lease.give_back()
