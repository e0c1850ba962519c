"""Values on the host: memory that TensorFlow owns, and the op that makes it a variable's value.

The traps behind this page (facts: sections 1 to 3 of the TensorFlow notes): a buffer that is not 64-byte aligned
aborts the process at the first computation; a live variable's buffer may be shared with constants of the process
and is never written to; memory that was handed over is never written again.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from fastassign.streaming.buffers import aligned, is_aligned

# Dtypes that `Empty` has a CPU kernel for; others (float8, 4-bit integers) get an aligned numpy array.
_EMPTY_DTYPES = frozenset(
    {"bfloat16", "bool", "complex64", "complex128", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)

# Below this, clearing the copy-on-read mark of a variable costs more than the copy that it saves.
_COPY_ON_READ_BYTES = 1 << 20
# Lookups are made in matrices; a variable of another rank that is marked costs one copy more, nothing else.
_LOOKUP_RANK = 2


@cache
def _shape_tensor(shape: tuple[int, ...]) -> Any:
    # A Python list costs 40 microseconds to convert at every call.
    with tf.device("CPU:0"), tf.init_scope():
        return tf.constant(shape, dtype=tf.int32, shape=(len(shape),))


def empty(shape: tuple[int, ...], dtype: str) -> tuple[Any, np.ndarray[Any, Any]]:
    """Allocate the value of one variable.

    Returns
    -------
    (tensor or numpy.ndarray, numpy.ndarray)
        What to assign, and a writable array of the same memory with ``shape`` and ``dtype``.
    """
    if dtype not in _EMPTY_DTYPES:
        array = _typed(aligned(_nbytes(shape, dtype)), shape, dtype, 0)
        return array, array
    tensor = tf.raw_ops.Empty(shape=_shape_tensor(shape), dtype=tf.as_dtype(dtype), init=False)
    return tensor, tensor.__array__()


class Arena:
    """One allocation for many small variables.

    The memory is a TensorFlow tensor, so that the allocator hands out warm pages and takes them back when the last
    variable lets go. Each variable gets a numpy view of its own, which TensorFlow keeps without copying. A
    TensorFlow slice would be cheaper and wrong: it is updated in place by the first optimizer step.

    Parameters
    ----------
    nbytes : int
        Bytes in the arena.
    """

    def __init__(self, nbytes: int) -> None:
        _, self.memory = empty((nbytes,), "uint8")
        if not is_aligned(self.memory):
            raise AssertionError("TensorFlow's allocator returned memory below its own alignment")

    def view(self, start: int, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
        """Return the part of the arena from byte ``start`` on (a multiple of 64) as an array."""
        return _typed(self.memory, shape, dtype, start)


def as_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """Return the memory of an array as bytes."""
    return array.reshape(-1).view(np.uint8).data


def assign(resource: Any, value: Any, nbytes: int) -> None:
    """Make ``value`` the value of a plain variable, without copying it.

    Parameters
    ----------
    resource : tf.Variable
        A plain resource variable on the CPU.
    value : tensor or numpy.ndarray
        64-byte aligned, of the variable's dtype; nobody writes to it afterwards.
    nbytes : int
        Its size.
    """
    handle = resource.handle
    if nbytes >= _COPY_ON_READ_BYTES and resource.shape.rank == _LOOKUP_RANK:
        # A gather (every embedding lookup) marks its variable so that each assignment is copied.
        tf.raw_ops.DisableCopyOnRead(resource=handle)
    tf.raw_ops.AssignVariableOp(resource=handle, value=value, validate_shape=True)


@cache
def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    found: np.dtype[Any] = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    return found


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * _numpy_dtype(dtype).itemsize


def _typed(memory: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: str, start: int) -> np.ndarray[Any, Any]:
    view: np.ndarray[Any, Any] = np.ndarray(shape, _numpy_dtype(dtype), memory, start)
    return view
