"""A pool of host memory that devices copy from: whole pages, page-locked where a driver can do it.

Page-locking takes time for every page, so the pool keeps locked memory: the next load uses the pages that a load gave
back. Every buffer is given back explicitly, within the load that leased it. (``fastassign.streaming.buffers`` pools
memory that outlives a load.)
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastassign.devices.driver import Driver
from fastassign.errors import Budget, DeviceFailed, NotPageLocked
from fastassign.planning.lanes import whole_pages

_log = logging.getLogger("fastassign")


@dataclass(frozen=True, slots=True)
class Locker:
    """The driver that page-locks memory, and its number of the device to do it for."""

    driver: Driver
    ordinal: int


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Memory of the pool, and the driver that page-locked it, if any."""

    memory: np.ndarray[Any, Any]
    locker: Locker | None


class StagingBuffer:
    """Memory that the pool lends, until it is given back.

    Attributes
    ----------
    memory : numpy.ndarray
        The bytes.
    address : int
        The address of the first byte, a multiple of the page size.
    owner : str
        A name for the holder, for error messages.
    """

    def __init__(self, pool: StagingPool, block: _Block, owner: str) -> None:
        self.memory, self.owner = block.memory, owner
        self.address = int(block.memory.ctypes.data)
        self._pool, self._block = pool, block

    def give_back(self) -> None:
        """Give the memory back. From now on neither the holder nor a device may read or write it.

        Raises
        ------
        RuntimeError
            The buffer was given back before.
        """
        self._pool.take_back(self, self._block)


class StagingPool:
    """A pool of page-aligned buffers: leased, given back, and kept for the next load. May be used from any thread.

    Attributes
    ----------
    leased_bytes, idle_bytes : int
        Bytes that are leased now, and bytes that wait to be leased.
    """

    def __init__(self) -> None:
        self.leased_bytes = self.idle_bytes = 0
        self._idle: list[_Block] = []
        self._leased: dict[StagingBuffer, None] = {}
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def lease(self, nbytes: int, *, owner: str, locker: Locker | None, limit_bytes: int) -> StagingBuffer:
        """Lease a buffer.

        Parameters
        ----------
        nbytes : int
            Size of the buffer; rounded up to whole pages.
        owner : str
            A name for the holder, for error messages.
        locker : Locker, optional
            Page-locks the buffer; without it the memory is pageable.
        limit_bytes : int
            The most that the pool may hold afterwards, idle memory included.

        Raises
        ------
        Budget
            The buffer and those that are leased already exceed the limit.
        NotPageLocked
            The system refuses to page-lock the buffer; nothing is leased.
        """
        nbytes = whole_pages(nbytes)
        with self._lock:
            room = limit_bytes - self.leased_bytes - nbytes
            if room < 0:
                raise Budget(
                    f"{nbytes} more bytes of staging memory do not fit: max_staging_bytes leaves {limit_bytes} bytes "
                    f"for it, of which {self._lent()}",
                    hint="raise LoadOptions(max_staging_bytes=), or load one model after the other",
                )
            block = self._idle_block(nbytes, locker)
            self._trim(room)
            if block is None:
                block = self._new_block(nbytes, locker)
            buffer = StagingBuffer(self, block, owner)
            self._leased[buffer] = None
            self.leased_bytes += nbytes
        return buffer

    def release(self) -> None:
        """Give all idle memory to the system."""
        with self._lock:
            self._trim(0)

    def _lent(self) -> str:
        """Return how many bytes are leased, and to whom, as the end of a sentence."""
        owners = dict.fromkeys(buffer.owner for buffer in self._leased)
        return f"{self.leased_bytes} are leased to {', '.join(owners)}" if owners else "none are leased"

    def _new_block(self, nbytes: int, locker: Locker | None) -> _Block:
        try:
            return _make(nbytes, locker)
        except NotPageLocked:
            if not self._idle:
                raise
        # The system's limit of locked memory counts idle memory too.
        self._trim(0)
        return _make(nbytes, locker)

    def _idle_block(self, nbytes: int, locker: Locker | None) -> _Block | None:
        for position, block in enumerate(self._idle):
            # Memory that one device locked is locked for all of them.
            if block.memory.nbytes == nbytes and (block.locker is None) == (locker is None):
                self.idle_bytes -= nbytes
                return self._idle.pop(position)
        return None

    def _trim(self, keep_bytes: int) -> None:
        while self.idle_bytes > keep_bytes:
            block = self._idle.pop(0)
            self.idle_bytes -= block.memory.nbytes
            _unlock(block)

    def take_back(self, buffer: StagingBuffer, block: _Block) -> None:
        """Take a buffer back; see ``StagingBuffer.give_back``."""
        with self._lock:
            if buffer not in self._leased:
                raise RuntimeError(f"the memory of {buffer.owner} was given back before")
            del self._leased[buffer]
            self.leased_bytes -= block.memory.nbytes
            self.idle_bytes += block.memory.nbytes
            self._idle.append(block)

    def _forget(self) -> None:
        # A child process has no device, and no thread that could give a buffer back.
        self._lock = threading.Lock()
        self._idle.clear()
        self._leased.clear()
        self.leased_bytes = self.idle_bytes = 0


def _make(nbytes: int, locker: Locker | None) -> _Block:
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without huge pages refuses; small pages serve as well
            pages.madvise(mmap.MADV_HUGEPAGE)
    memory: np.ndarray[Any, Any] = np.frombuffer(pages, dtype=np.uint8)
    if locker is not None:
        locker.driver.lock(locker.ordinal, int(memory.ctypes.data), nbytes)
    return _Block(memory, locker)


# Memory that could not be unlocked is kept for good: nobody else may get pages that a driver still holds.
_lost: list[_Block] = []


def _unlock(block: _Block) -> None:
    if block.locker is None:
        return
    try:
        block.locker.driver.unlock(block.locker.ordinal, int(block.memory.ctypes.data))
    except DeviceFailed as error:
        _log.warning("%d bytes of host memory stay page-locked: %s", block.memory.nbytes, error)
        _lost.append(block)
