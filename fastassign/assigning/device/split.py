"""A slab of many values, cut up by eager ops: the pieces stay in its memory, nothing is copied.

One op makes the values of a whole run of variables of one shape, because a Python call for each would take as long as
its assignment.
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
        The slab, two-dimensional, with rows of 64 bytes, on the device of the variables. Its memory is TensorFlow's
        own, and must not be written to afterwards. (An optimizer would update pieces of other memory in place.)
    batch : Batch
        The variables, in the order of the slab; each value begins with a row.
    """
    runs = run_lengths(batch.placements)
    placements = iter(batch.placements)
    members = [[next(placements) for _ in range(count)] for _, count in runs]
    rows = [sum(p.slab_bytes for p in each) // ALIGNMENT for each in members]
    pieces = [slab]
    if len(rows) > 1:
        with tf.device("CPU:0"):  # the op takes its sizes from host memory
            sizes = tf.constant(rows, dtype=tf.int32)
        pieces = tf.raw_ops.SplitV(value=slab, size_splits=sizes, axis=_axis(), num_split=len(rows))
    row = int(slab.shape[1])
    for (shape, count), each, piece, height in zip(runs, members, pieces, rows, strict=True):
        for placement, value in zip(each, _values(piece, shape, count, height * row // count), strict=True):
            target = placement.assignment.target
            memory.assign(target.resource, value, target.nbytes)


def _values(piece: Any, shape: tuple[int, ...], count: int, step: int) -> Iterator[Any]:
    """Cut apart the rows of values of one shape; ``step`` is the number of elements from one value to the next."""
    size = math.prod(shape)
    if size != step:  # the end of each last row is left out, which takes a copy on the device
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
