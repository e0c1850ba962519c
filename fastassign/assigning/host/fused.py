"""Batches of a repeated load: one tensor for all values, one call for all assignments.

An eager op takes TensorFlow 10 to 15 microseconds, and 30 while the other core copies memory; inside a function an
assignment takes 2 to 5. The values are pieces of one tensor, made by one op, and become the variables' without being
copied. On 2 cores ResNet152's 932 variables load in 41 ms; with a tensor for each large variable, and a copy of each
small one, they took 53.

To pass a value as an argument costs 8 microseconds more for a numpy array. By DLPack it costs 2, but then the thread
that frees the old value waits for the interpreter's lock, which made a load slower than without a function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from fastassign.assigning.host import memory
from fastassign.assigning.host.function import AssignFunction, SlabSlice
from fastassign.assigning.host.host_batch import HostBatch
from fastassign.assigning.journal import Journal
from fastassign.planning.batches import Batch
from fastassign.planning.routes import ALIGNMENT
from fastassign.targets.variables import numpy_dtype_of

# The function copies a value that does not fill its last row; above this size it is passed as an argument instead.
_COPIED_BYTES = 128 << 10


class Fusion:
    """The function of a batch of the route ``"fused"``, which is kept between loads.

    Parameters
    ----------
    batch : Batch
        The batch.

    Attributes
    ----------
    batch : Batch
        The batch.
    names : list of str
        The names of its variables.
    device : str
        The device of the variables.
    dtype : str
        The dtype of the variables.
    shape : (int, int)
        The shape of the slab, with rows of 64 bytes.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        targets = [placement.assignment.target for placement in batch.placements]
        self.names = [target.name for target in targets]
        self.device, self.dtype = targets[0].device, targets[0].dtype
        row = ALIGNMENT // numpy_dtype_of(self.dtype).itemsize
        self.shape = (batch.arena_bytes // ALIGNMENT, row)
        slices = [
            SlabSlice(
                placement.assignment.target,
                placement.slab_bytes // ALIGNMENT,
                # On a device the whole slab is there already.
                is_argument=not batch.lane and placement.nbytes > _COPIED_BYTES and placement.nbytes % ALIGNMENT != 0,
            )
            for placement in batch.placements
        ]
        self._arguments = [
            (start, cut) for start, cut in zip(batch.arena_starts, slices, strict=True) if cut.is_argument
        ]
        self._function = AssignFunction(slices, row)

    def assign(self, slab: Any, array: np.ndarray[Any, Any] | None = None) -> None:
        """Assign the values in the slab to the variables; ``array`` is the same memory, if it is on the host."""
        arguments = []
        if array is not None:
            slab_bytes = array.reshape(-1).view(np.uint8)
            arguments = [
                memory.typed(slab_bytes, cut.target.shape, self.dtype, start) for start, cut in self._arguments
            ]
        with tf.device(self.device):
            self._function(slab, arguments)


class Fusions:
    """The fusions of a schedule, made when they are needed; for one load at a time."""

    def __init__(self) -> None:
        self._kept: dict[Batch, Fusion] = {}

    def of(self, batch: Batch) -> Fusion:
        """Return the fusion of a batch."""
        fusion = self._kept.get(batch)
        if fusion is None:
            fusion = self._kept[batch] = Fusion(batch)
        return fusion


class FusedBatch(HostBatch):
    """Many variables of one CPU device and one dtype, assigned by one call.

    Parameters
    ----------
    fusion : Fusion
        The fusion of the batch.
    """

    __slots__ = ("_array", "_fusion", "_slab")

    def __init__(self, fusion: Fusion) -> None:
        super().__init__(fusion.batch)
        self._fusion = fusion
        self._slab: Any
        self._array: Any
        with tf.device(fusion.device):
            self._slab, self._array = memory.empty(fusion.shape, fusion.dtype)

    def _views(self) -> list[memoryview]:
        slab_bytes = memory.as_bytes(self._array)
        members = zip(self.batch.placements, self.batch.arena_starts, strict=True)
        return [slab_bytes[start : start + placement.nbytes] for placement, start in members]

    def assign(self, journal: Journal) -> None:
        """Assign the values by one call; see ``OpenBatch.assign``."""
        for placement in self.batch.placements:
            journal.remember(placement.assignment.target)
        # Named before they change, and still if the call fails: nothing tells which of them it reached.
        journal.assigned += self._fusion.names
        self._fusion.assign(self._slab, self._array)
        self.release()
        journal.enter("fused", self._fusion.names, self.batch.nbytes)

    def release(self) -> None:
        """Let go of the memory; see ``OpenBatch.release``."""
        self._slab = self._array = None
