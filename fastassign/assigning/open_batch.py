"""A batch whose memory exists: it is read into, then assigned."""

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
        What is allocated.

    Attributes
    ----------
    batch : Batch
        The same.
    unread : int
        Jobs that have not ended; counted by whoever runs them.
    """

    __slots__ = ("batch", "unread")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.unread = 0

    @abstractmethod
    def jobs(self, source: Source, gap: memoryview, decode: Decode) -> Iterator[Callable[[], None]]:
        """Yield what fills the memory, to be run in any thread and order.

        Parameters
        ----------
        source : Source
            What to read from.
        gap : memoryview
            Takes the bytes that nobody wants.
        decode : callable
            Reads a tensor that only h5py can read.
        """

    def locate(self) -> None:  # noqa: B027 - only memory on a device has to be asked for
        """Find out where the memory is; after all batches that are opened together were made, before ``jobs``."""

    def settle(self) -> None:  # noqa: B027 - only a device works on when the jobs have ended
        """Wait until the values are where they will be assigned from.

        Raises
        ------
        DeviceFailed
            They do not get there.
        """

    @abstractmethod
    def assign(self, journal: Journal) -> None:
        """Make the values the values of the variables, and let go of the memory: it belongs to them now."""

    @abstractmethod
    def release(self) -> None:
        """Let go of the memory; nothing is read into it or copied there any more."""


def scattered(read: Read, views: list[memoryview], gap: memoryview) -> list[memoryview]:
    """Return the buffers that a read fills: of each piece that of its owner, or what takes the bytes nobody wants."""
    return [
        gap[: piece.nbytes] if piece.owner == GAP else views[piece.owner][piece.start : piece.start + piece.nbytes]
        for piece in read.pieces
    ]
