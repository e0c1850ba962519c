"""A slab of many values, cut up by eager ops: the pieces are its memory, nothing is copied.

An op makes the values of a whole run of variables of one shape, because a Python call for each would take as long as
the assignment does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import tensorflow as tf

from fastassign.assigning.host import memory
from fastassign.assigning.host.memory import shape_tensor
from fastassign.planning.batches import Batch, run_lengths
from fastassign.planning.routes import ALIGNMENT


def split(slab: Any, batch: Batch) -> None:
    """Assign the values of a batch.

    Parameters
    ----------
    slab : tensor
        Of two dimensions, rows of 64 bytes, on the device of the variables: memory of TensorFlow's own that nobody
        writes to afterwards. (Pieces of memory that is not TensorFlow's would be updated in place by an optimizer.)
    batch : Batch
        The variables, in the slab's order; a value begins with a row.
    """
    runs = run_lengths(batch.placements)
    placements = iter(batch.placements)
    members = [[next(placements) for _ in range(count)] for _, count in runs]
    rows = [sum(p.slab_bytes for p in each) // ALIGNMENT for each in members]
    pieces = [slab]
    if len(rows) > 1:
        with tf.device("CPU:0"):  # what the op takes in host memory
            sizes = tf.constant(rows, dtype=tf.int32)
        pieces = tf.raw_ops.SplitV(value=slab, size_splits=sizes, axis=_axis(), num_split=len(rows))
    row = int(slab.shape[1])
    for (shape, count), each, piece, height in zip(runs, members, pieces, rows, strict=True):
        for placement, value in zip(each, _values(piece, shape, count, height * row // count), strict=True):
            target = placement.assignment.target
            memory.assign(target.resource, value, target.nbytes)


def _values(piece: Any, shape: tuple[int, ...], count: int, step: int) -> Iterator[Any]:
    """Cut the rows of some values of one shape apart; ``step`` is the elements from one to the next."""
    size = math.prod(shape)
    if size != step:  # what fills the last row is left out: this copies, on the device
        flat = tf.raw_ops.Reshape(tensor=piece, shape=shape_tensor((count, step)))
        piece = tf.raw_ops.Slice(input=flat, begin=shape_tensor((0, 0)), size=shape_tensor((count, size)))
    if count == 1:
        yield tf.raw_ops.Reshape(tensor=piece, shape=shape_tensor(shape))
        return
    whole = tf.raw_ops.Reshape(tensor=piece, shape=shape_tensor((count, *shape)))
    yield from tf.raw_ops.Unpack(value=whole, num=count, axis=0)


@cache
def _axis() -> Any:
    with tf.device("CPU:0"), tf.init_scope():
        return tf.constant(0, dtype=tf.int32)
