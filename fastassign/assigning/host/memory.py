"""Values on the host: memory that TensorFlow owns, and the op that makes it a variable's value.

The traps (docs/internals/tensorflow.md, sections 1 to 3): a buffer that is not 64-byte aligned aborts the process at
the first computation; the buffer of a live variable may be shared with constants of the process, so it is never written
to; nor is memory that was handed over.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from fastassign.planning.routes import KERNEL_DTYPES
from fastassign.streaming.buffers import ArenaPool, aligned_array, is_aligned
from fastassign.targets.deferred import DeferredVariable, has_value, raw_handle
from fastassign.targets.variables import numpy_dtype_of

# For smaller values, clearing a variable's copy-on-read mark costs more than the copy that it saves.
_COPY_ON_READ_BYTES = 1 << 20
# Lookups are made in matrices. If a variable of another rank is marked, that costs one more copy, nothing else.
_LOOKUP_RANK = 2


@cache
def shape_tensor(shape: tuple[int, ...]) -> Any:
    """Return a shape as a tensor, cached: to convert a Python list takes 40 microseconds at every call."""
    with tf.device("CPU:0"), tf.init_scope():
        return tf.constant(shape, dtype=tf.int32, shape=(len(shape),))


def empty(shape: tuple[int, ...], dtype: str) -> tuple[Any, np.ndarray[Any, Any]]:
    """Allocate the value of one variable.

    Returns
    -------
    (tensor or numpy.ndarray, numpy.ndarray)
        The value to assign, and a writable array of the same memory with ``shape`` and ``dtype``.
    """
    # The array of a tensor without dimensions is a number, not its memory.
    if dtype not in KERNEL_DTYPES or not shape:
        array = typed(aligned_array(_nbytes(shape, dtype)), shape, dtype, 0)
        return array, array
    tensor = tf.raw_ops.Empty(shape=shape_tensor(shape), dtype=tf.as_dtype(dtype), init=False)
    return tensor, tensor.__array__()


class Arena:
    """One allocation for many variables.

    For eager variables the memory is a TensorFlow tensor, so that the allocator hands out warm pages, and takes them
    back when the last variable lets go of them. Each variable gets a numpy view of its own, which TensorFlow keeps
    without copying it. (A TensorFlow slice of memory that is not TensorFlow's would be wrong: the first optimizer step
    updates it in place.) For variables of a graph there are no eager tensors, and the memory comes from our own pool.

    Parameters
    ----------
    nbytes : int
        Size of the arena in bytes, a multiple of 64.
    pool : ArenaPool, optional
        The pool that the memory comes from; by default TensorFlow's allocator provides it.

    Attributes
    ----------
    memory : numpy.ndarray
        The whole arena as bytes.
    """

    def __init__(self, nbytes: int, pool: ArenaPool | None = None) -> None:
        self.memory = pool.lease(nbytes) if pool is not None else empty((nbytes,), "uint8")[1]
        if not is_aligned(self.memory):
            raise AssertionError("TensorFlow's allocator returned memory that is not aligned to 64 bytes")

    def view(self, start: int, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
        """Return the part of the arena from byte ``start`` on (a multiple of 64) as an array."""
        return typed(self.memory, shape, dtype, start)


def as_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """Return the memory of an array as bytes."""
    return array.reshape(-1).view(np.uint8).data


def reads_copy(resource: Any, nbytes: int) -> bool:
    """Tell whether it pays to clear a variable's copy-on-read mark before it is assigned.

    A gather (every embedding lookup) marks its variable, and from then on each assignment to it copies.
    """
    return bool(nbytes >= _COPY_ON_READ_BYTES and resource.shape.rank == _LOOKUP_RANK)


def assign(resource: Any, value: Any, nbytes: int) -> None:
    """Make ``value`` the value of a plain variable, without copying it.

    Parameters
    ----------
    resource : tf.Variable
        A plain resource variable on the CPU.
    value : tensor or numpy.ndarray
        The value, 64-byte aligned, of the variable's dtype. It must not be written to afterwards.
    nbytes : int
        Size of the value in bytes.
    """
    if type(resource) is DeferredVariable:  # it has no value yet, so nothing can have read it
        tf.raw_ops.AssignVariableOp(resource=raw_handle(resource), value=value)
        has_value(resource)
        return
    handle = resource.handle
    if reads_copy(resource, nbytes):
        tf.raw_ops.DisableCopyOnRead(resource=handle)
    tf.raw_ops.AssignVariableOp(resource=handle, value=value, validate_shape=True)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * numpy_dtype_of(dtype).itemsize


def typed(memory: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: str, start: int) -> np.ndarray[Any, Any]:
    """Return the memory from byte ``start`` on (a multiple of 64) as an array."""
    view: np.ndarray[Any, Any] = np.ndarray(shape, numpy_dtype_of(dtype), memory, start)
    return view
