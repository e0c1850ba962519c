"""Host memory that devices copy from: whole pages, page-locked where there is a device, kept for the process.

Page-locking takes time for every page: it is done once, and what a load gives back serves the next.
Unlike the memory of ``buffers`` nothing outlives a load in here: whoever leases it says when it is free again.
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
    """Who page-locks memory: a driver, and the number of one of its devices."""

    driver: Driver
    ordinal: int


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Memory of the pool, and who locked it."""

    memory: np.ndarray[Any, Any]
    locker: Locker | None


class StagingBuffer:
    """Memory of the pool, until it is given back.

    Attributes
    ----------
    memory : numpy.ndarray
        The bytes.
    address : int
        Of the first, a multiple of a page.
    owner : str
        Who has it.
    """

    def __init__(self, pool: StagingPool, block: _Block, owner: str) -> None:
        self.memory, self.owner = block.memory, owner
        self.address = int(block.memory.ctypes.data)
        self._pool, self._block = pool, block

    def give_back(self) -> None:
        """Give the memory back: nobody reads or writes it any more, no device either.

        Raises
        ------
        RuntimeError
            It was given back before.
        """
        self._pool.take_back(self, self._block)


class StagingPool:
    """Page-aligned memory that is leased, given back, and kept. May be used from any thread.

    Attributes
    ----------
    leased_bytes, idle_bytes : int
        What is out, and what waits.
    """

    def __init__(self) -> None:
        self.leased_bytes = self.idle_bytes = 0
        self._idle: list[_Block] = []
        self._leases: dict[StagingBuffer, None] = {}
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def lease(self, nbytes: int, *, owner: str, locker: Locker | None, limit_bytes: int) -> StagingBuffer:
        """Lend memory.

        Parameters
        ----------
        nbytes : int
            How much; rounded up to whole pages.
        owner : str
            Who asks.
        locker : Locker, optional
            Who page-locks it.
        limit_bytes : int
            What the pool may hold at most afterwards, idle memory included.

        Raises
        ------
        Budget
            More is out already.
        NotPageLocked
            The system does not page-lock it; nothing was lent.
        """
        nbytes = whole_pages(nbytes)
        with self._lock:
            room = limit_bytes - self.leased_bytes - nbytes
            if room < 0:
                raise Budget(
                    f"{nbytes} more bytes of staging memory are needed, max_staging_bytes leaves {limit_bytes} "
                    f"for it, and {self.leased_bytes} are out, to {', '.join(self._owners()) or 'nobody'}",
                    hint="raise LoadOptions(max_staging_bytes=), or load one model after the other",
                )
            block = self._idle_block(nbytes, locker)
            self._trim(room)
            if block is None:
                block = self._new_block(nbytes, locker)
            lease = StagingBuffer(self, block, owner)
            self._leases[lease] = None
            self.leased_bytes += nbytes
        return lease

    def release(self) -> None:
        """Give all idle memory to the system."""
        with self._lock:
            self._trim(0)

    def _owners(self) -> list[str]:
        return list(dict.fromkeys(lease.owner for lease in self._leases))

    def _new_block(self, nbytes: int, locker: Locker | None) -> _Block:
        try:
            return _make(nbytes, locker)
        except NotPageLocked:
            if not self._idle:
                raise
        # What lies idle counts too where the system bounds locked memory.
        self._trim(0)
        return _make(nbytes, locker)

    def _idle_block(self, nbytes: int, locker: Locker | None) -> _Block | None:
        for position, block in enumerate(self._idle):
            # Locked by one device it is locked for all.
            if block.memory.nbytes == nbytes and (block.locker is None) == (locker is None):
                self.idle_bytes -= nbytes
                return self._idle.pop(position)
        return None

    def _trim(self, keep_bytes: int) -> None:
        while self.idle_bytes > keep_bytes:
            block = self._idle.pop(0)
            self.idle_bytes -= block.memory.nbytes
            _unlock(block)

    def take_back(self, lease: StagingBuffer, block: _Block) -> None:
        """Take a lease back; see ``StagingBuffer.give_back``."""
        with self._lock:
            if lease not in self._leases:
                raise RuntimeError(f"the memory of {lease.owner} was given back before")
            del self._leases[lease]
            self.leased_bytes -= block.memory.nbytes
            self.idle_bytes += block.memory.nbytes
            self._idle.append(block)

    def _forget(self) -> None:
        # In a child process there is no device, and nobody that could give a lease back.
        self._lock = threading.Lock()
        self._idle.clear()
        self._leases.clear()
        self.leased_bytes = self.idle_bytes = 0


def _make(nbytes: int, locker: Locker | None) -> _Block:
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel that was built without huge pages refuses; small ones do as well
            pages.madvise(mmap.MADV_HUGEPAGE)
    memory: np.ndarray[Any, Any] = np.frombuffer(pages, dtype=np.uint8)
    if locker is not None:
        locker.driver.lock(locker.ordinal, int(memory.ctypes.data), nbytes)
    return _Block(memory, locker)


# What could not be unlocked: a page that a driver believes it has must not go to anybody else.
_lost: list[_Block] = []


def _unlock(block: _Block) -> None:
    if block.locker is None:
        return
    try:
        block.locker.driver.unlock(block.locker.ordinal, int(block.memory.ctypes.data))
    except DeviceFailed as error:
        _log.warning("%d bytes of host memory stay page-locked: %s", block.memory.nbytes, error)
        _lost.append(block)


# One for the process: what one load page-locked serves the next.
STAGING = StagingPool()
