"""Open batches that go straight into tensors on a device, so that each value arrives where it stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from fastassign.assigning.device import tensors
from fastassign.assigning.device.open_lane import OpenLane
from fastassign.assigning.host import memory
from fastassign.assigning.journal import Journal
from fastassign.assigning.open_batch import Decode, OpenBatch
from fastassign.devices.driver import Fence, Stream
from fastassign.devices.ring import Slot
from fastassign.kernels.cast import CASTS
from fastassign.kernels.scatter import Scatter
from fastassign.planning.batches import TABLE_ROW_BYTES, Batch
from fastassign.planning.coalesce import GAP, Read
from fastassign.planning.routes import ALIGNMENT
from fastassign.streaming.source import Source, fill
from fastassign.streaming.unbuffered import fill_pages
from fastassign.targets.variables import numpy_dtype_of


class DirectBatch(OpenBatch):
    """Variables on one device, each with a tensor of its own there, into which slots are copied piece by piece.

    Parameters
    ----------
    batch : Batch
        The batch to allocate.
    lane : OpenLane
        The open lane to the device.
    unbuffered : Source, optional
        The source that reads the file past the page cache, if that was asked for.
    """

    __slots__ = ("_addresses", "_fences", "_lane", "_tensors", "_unbuffered")

    def __init__(self, batch: Batch, lane: OpenLane, unbuffered: Source | None) -> None:
        super().__init__(batch)
        self._lane, self._unbuffered = lane, unbuffered
        targets = [placement.assignment.target for placement in batch.placements]
        self._tensors: list[Any] = [tensors.value_of(target) for target in targets]
        self._addresses: list[int] = []
        self._fences: list[Fence] = []

    def locate(self) -> None:
        """Look up the addresses; see ``OpenBatch.locate``."""
        self._addresses = [tensors.address(tensor, self._lane.device) for tensor in self._tensors]

    def jobs(self, source: Source, gap: memoryview, decode: Decode) -> Iterator[Callable[[], None]]:  # noqa: ARG002
        """Yield a job for each read; see ``OpenBatch.jobs``."""
        send = self._send_to_cast if self.batch.casts else self._send
        for read in self.batch.reads:
            yield partial(send, source, read)

    def _send(self, source: Source, read: Read) -> None:
        """Fill a slot with a read as it stands in the file, and copy its pieces to their tensors."""
        with self._lane.ring.slot() as slot:
            start = 0
            if self._unbuffered is None:
                fill(source, [slot.view[: read.nbytes]], read.offset, read.nbytes)
            else:
                start = fill_pages(self._unbuffered, slot.view, read.offset, read.nbytes)
            with self._lane.stream as stream:
                at = slot.address + start
                for piece in read.pieces:
                    if piece.owner != GAP:
                        stream.copy(self._addresses[piece.owner] + piece.start, at, piece.nbytes)
                    at += piece.nbytes
                self._fence(slot, stream)

    def _send_to_cast(self, source: Source, read: Read) -> None:
        """Fill a slot, copy it to its twin on the device, and cast the values from there."""
        # The batch holds one variable, and its reads have no gaps.
        (piece,) = read.pieces
        target = self.batch.placements[0].assignment.target
        wide = piece.nbytes * target.nbytes // self.batch.nbytes
        start = piece.start * target.nbytes // self.batch.nbytes
        with self._lane.ring.slot() as slot:
            fill(source, [slot.view[ALIGNMENT : ALIGNMENT + read.nbytes]], read.offset, read.nbytes)
            count = wide // numpy_dtype_of(target.dtype).itemsize
            slot.memory[:TABLE_ROW_BYTES].view(np.int64)[:] = (0, 0, count)
            twin = self._lane.twin(slot)
            launch = Scatter(
                source=twin + ALIGNMENT,
                source_nbytes=read.nbytes,
                destination=self._addresses[0] + start,
                destination_nbytes=wide,
                table=twin,
                rows=1,
                longest=count,
                kind=CASTS["float32", target.dtype],
            )
            with self._lane.stream as stream:
                stream.copy(twin, slot.address, ALIGNMENT + read.nbytes)
                stream.scatter(launch)
                self._fence(slot, stream)

    def _fence(self, slot: Slot, stream: Stream) -> None:
        slot.fence = stream.record()
        self._fences.append(slot.fence)

    def settle(self) -> None:
        """Wait for the copies; see ``OpenBatch.settle``."""
        while self._fences:
            self._fences.pop().wait()

    def assign(self, journal: Journal) -> None:
        """Assign the tensors; see ``OpenBatch.assign``."""
        with tensors.placed(self._lane.device):
            for placement, tensor in zip(self.batch.placements, self._tensors, strict=True):
                with journal.entering(placement):
                    memory.assign(placement.assignment.target.resource, tensor, placement.assignment.target.nbytes)
        self.release()

    def release(self) -> None:
        """Let go of the tensors; see ``OpenBatch.release``."""
        self._tensors = []
