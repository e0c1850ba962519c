"""Open batches that go to a device in one copy: many small values, packed in a slot and cut up where they arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from fastassign.assigning.device import tensors
from fastassign.assigning.device.open_lane import OpenLane
from fastassign.assigning.device.split import split
from fastassign.assigning.host import memory
from fastassign.assigning.host.fused import Fusions
from fastassign.assigning.journal import Journal
from fastassign.assigning.open_batch import Decode, OpenBatch, scattered
from fastassign.devices.driver import Fence
from fastassign.kernels.cast import CASTS
from fastassign.kernels.scatter import Scatter
from fastassign.planning.batches import Batch
from fastassign.planning.routes import ALIGNMENT
from fastassign.streaming.source import Source, fill
from fastassign.targets.variables import numpy_dtype_of


class SlabBatch(OpenBatch):
    """Small variables of one dtype on one device, which share one copy.

    Parameters
    ----------
    batch : Batch
        The batch to allocate.
    lane : OpenLane
        The open lane to the device.
    fusions : Fusions
        The fusions that are kept from one load to the next.
    """

    __slots__ = ("_address", "_addresses", "_fence", "_fusions", "_lane", "_slab", "_values")

    def __init__(self, batch: Batch, lane: OpenLane, fusions: Fusions) -> None:
        super().__init__(batch)
        self._lane, self._fusions = lane, fusions
        target = batch.placements[0].assignment.target
        # The slab has the file's dtype, which differs from the variables' only if the values are cast.
        stored = "float32" if batch.casts else target.dtype
        self._slab: Any = tensors.empty(_rows(batch.arena_bytes, stored), stored, lane.device)
        self._values: list[Any] = []
        if batch.cut == "scatter":
            self._values = [tensors.value_of(placement.assignment.target) for placement in batch.placements]
        elif batch.casts:
            nbytes = sum(placement.slab_bytes for placement in batch.placements)
            self._values = [tensors.empty(_rows(nbytes, target.dtype), target.dtype, lane.device)]
        self._address = 0
        self._addresses: list[int] = []
        self._fence: Fence | None = None

    def locate(self) -> None:
        """Look up the addresses; see ``OpenBatch.locate``."""
        self._address = tensors.address(self._slab, self._lane.device)
        self._addresses = [tensors.address(value, self._lane.device) for value in self._values]

    def jobs(self, source: Source, gap: memoryview, decode: Decode) -> Iterator[Callable[[], None]]:  # noqa: ARG002
        """Yield one job, which fills one slot; see ``OpenBatch.jobs``."""
        yield partial(self._send, source, gap)

    def _send(self, source: Source, gap: memoryview) -> None:
        batch = self.batch
        with self._lane.ring.slot() as slot:
            members = zip(batch.placements, batch.arena_starts, strict=True)
            views = [slot.view[start : start + placement.nbytes] for placement, start in members]
            for read in batch.reads:
                fill(source, scattered(read, views, gap), read.offset, read.nbytes)
            launch = self._launch(slot.memory[: batch.head_bytes]) if batch.head_bytes else None
            with self._lane.stream as stream:
                stream.copy(self._address, slot.address, batch.arena_bytes)
                if launch is not None:
                    stream.scatter(launch)
                slot.fence = self._fence = stream.record()

    def _launch(self, head: np.ndarray[Any, Any]) -> Scatter:
        """Write the table for the kernel, and return its launch."""
        batch = self.batch
        target = batch.placements[0].assignment.target
        # A kernel that casts counts in elements of each dtype, one that copies counts in bytes.
        wide, narrow = (4, numpy_dtype_of(target.dtype).itemsize) if batch.casts else (1, 1)
        # One row for each value, or one for the whole slab.
        starts = batch.arena_starts if batch.cut == "scatter" else (batch.head_bytes,)
        slab_bytes = batch.arena_bytes - batch.head_bytes
        sizes = [p.nbytes for p in batch.placements] if batch.cut == "scatter" else [slab_bytes]
        lowest = min(self._addresses)
        table = np.array(
            [
                ((start - batch.head_bytes) // wide, (address - lowest) // narrow, nbytes // wide)
                for start, address, nbytes in zip(starts, self._addresses, sizes, strict=True)
            ],
            dtype=np.int64,
        )
        head[: table.nbytes].view(np.int64)[:] = table.reshape(-1)
        return Scatter(
            source=self._address + batch.head_bytes,
            source_nbytes=slab_bytes,
            destination=lowest,
            destination_nbytes=int((table[:, 1] + table[:, 2]).max()) * narrow,
            table=self._address,
            rows=len(table),
            longest=int(table[:, 2].max()),
            kind=CASTS["float32", target.dtype] if batch.casts else "copy",
        )

    def settle(self) -> None:
        """Wait for the copy and the kernel after it; see ``OpenBatch.settle``."""
        if self._fence is not None:
            self._fence.wait()
            self._fence = None

    def assign(self, journal: Journal) -> None:
        """Assign the values that arrived; see ``OpenBatch.assign``."""
        batch = self.batch
        if batch.cut == "scatter":
            with tensors.placed(self._lane.device):
                for placement, value in zip(batch.placements, self._values, strict=True):
                    with journal.entering(placement):
                        memory.assign(placement.assignment.target.resource, value, placement.assignment.target.nbytes)
        else:
            self._cut_up(journal)
        self.release()

    def release(self) -> None:
        """Let go of the tensors; see ``OpenBatch.release``."""
        self._slab, self._values = None, []

    def _cut_up(self, journal: Journal) -> None:
        batch = self.batch
        assignments = [placement.assignment for placement in batch.placements]
        for assignment in assignments:
            journal.remember(assignment.target)
            journal.note_cast(assignment)
        # Named before they change, and still if a call fails: nothing tells which of them it reached.
        names = [assignment.target.name for assignment in assignments]
        journal.assigned += names
        values = self._values[0] if batch.casts else self._slab
        with tensors.placed(self._lane.device):
            if batch.cut == "function":
                self._fusions.of(batch).assign(values)
            else:
                split(values, batch)
        journal.enter("fused", names, batch.nbytes)


def _rows(nbytes: int, dtype: str) -> tuple[int, int]:
    return nbytes // ALIGNMENT, ALIGNMENT // numpy_dtype_of(dtype).itemsize
