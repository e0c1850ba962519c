"""A ring of slots: the host memory that values pass through on their way to a device."""

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
    number : int
        The slot's place in the ring.
    buffer : StagingBuffer
        The memory.

    Attributes
    ----------
    memory : numpy.ndarray
        The bytes.
    view : memoryview
        The same bytes, to read into.
    address : int
        The address of the first byte.
    fence : Fence or None
        The mark behind the last copy out of the slot. The thread that fills the slot sets it.
    """

    __slots__ = ("address", "buffer", "fence", "memory", "number", "view")

    def __init__(self, number: int, buffer: StagingBuffer) -> None:
        self.number, self.buffer = number, buffer
        self.memory: np.ndarray[Any, Any] = buffer.memory
        self.view = buffer.memory.data
        self.address = buffer.address
        self.fence: Fence | None = None


class Ring:
    """Slots that are filled, copied from, and filled again only after the copy is done.

    Parameters
    ----------
    lease : callable
        Leases the buffer of one slot.
    count : int
        The number of slots.
    mark : callable
        Makes a fence behind all copies.
    """

    def __init__(self, lease: Callable[[], StagingBuffer], count: int, mark: Callable[[], Fence]) -> None:
        self._mark = mark
        self._free: list[Slot] = []
        self._copied: deque[Slot] = deque()
        self._changed = threading.Condition()
        self._slots: list[Slot] = []
        try:
            for number in range(count):
                self._slots.append(Slot(number, lease()))
        except BaseException:
            self._give_back(self._slots)
            raise
        self._free.extend(self._slots)

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """Lend a slot to a thread. If the thread sets ``fence``, the slot is not lent again before the fence is passed.

        Raises
        ------
        DeviceFailed
            The device failed to copy the slot's previous values.
        """
        slot = self._take()
        slot.fence = None
        try:
            yield slot
        except BaseException:
            # An interrupted thread may leave a copy behind without its fence.
            if slot.fence is None:
                with suppress(DeviceFailed):  # a failed device copies nothing any more
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
        """Wait for all copies out of the slots, and give the memory of the slots back.

        Raises
        ------
        DeviceFailed
            The device failed. It copies nothing any more, so the memory is given back all the same.
        """
        failure: BaseException | None = None
        fence: Fence | None = None
        is_done = False
        while not is_done:
            try:
                fence = fence or self._mark()
                fence.wait()
                is_done = True
            except Exception as error:  # noqa: BLE001 - raised below, when all memory is given back
                failure, is_done = error, True
            except BaseException as error:  # noqa: BLE001 - Ctrl-C does not stop the device: wait on
                failure = error
        self._give_back(self._slots)
        self._slots = []
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # with its traceback it is a reference cycle that would keep the device's memory

    @staticmethod
    def _give_back(slots: list[Slot]) -> None:
        for slot in slots:
            slot.buffer.give_back()
