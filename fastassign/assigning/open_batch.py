"""Open batches: batches whose memory exists, to be read into and then assigned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastassign.assigning.journal import Journal
from fastassign.catalog.records import TensorRecord
from fastassign.planning.batches import Batch
from fastassign.planning.coalesce import GAP, Read
from fastassign.streaming.source import Source

if TYPE_CHECKING:
    import numpy as np

Decode = Callable[[TensorRecord, "np.ndarray[Any, Any]"], None]


class OpenBatch(ABC):
    """A batch whose memory exists.

    Parameters
    ----------
    batch : Batch
        The batch to allocate.

    Attributes
    ----------
    batch : Batch
        The batch.
    unread : int
        Number of jobs that have not ended; kept by the thread that submits them.
    """

    __slots__ = ("batch", "unread")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.unread = 0

    @abstractmethod
    def jobs(self, source: Source, gap: memoryview, decode: Decode) -> Iterator[Callable[[], None]]:
        """Yield the jobs that fill the memory, to be run in any thread and any order.

        Parameters
        ----------
        source : Source
            The source to read from.
        gap : memoryview
            The buffer for bytes to drop.
        decode : callable
            Reads a tensor that only h5py can read.
        """

    def locate(self) -> None:  # noqa: B027 - only memory on a device has to be located
        """Look up the addresses of the memory; called before ``jobs``, when all batches of a window are allocated."""

    def settle(self) -> None:  # noqa: B027 - only a device goes on working after the jobs
        """Wait until the values have arrived.

        Raises
        ------
        DeviceFailed
            A value did not arrive.
        """

    @abstractmethod
    def assign(self, journal: Journal) -> None:
        """Assign the values to the variables, and let go of the memory, which belongs to the variables now."""

    @abstractmethod
    def release(self) -> None:
        """Let go of the memory; nothing is being read or copied into it any more."""


def scattered(read: Read, views: list[memoryview], gap: memoryview) -> list[memoryview]:
    """Return the buffers that a read fills: for each piece a part of its owner's, or of ``gap`` for bytes to drop."""
    return [
        gap[: piece.nbytes] if piece.owner == GAP else views[piece.owner][piece.start : piece.start + piece.nbytes]
        for piece in read.pieces
    ]
