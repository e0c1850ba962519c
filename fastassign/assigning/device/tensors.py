"""Tensors that TensorFlow allocates on a device, and their addresses.

The traps (docs/internals/tensorflow.md, section 4): the allocator may hand out memory that work queued on the device
still uses, until the device has been waited for; and to ask for a tensor's address by DLPack waits, each time. So all
tensors of a window are made first, and their addresses asked for afterwards.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from fastassign.assigning.host.memory import shape_tensor
from fastassign.devices.driver import LOST_HINT
from fastassign.errors import DeviceFailed, DeviceMemory, annotate
from fastassign.targets.target import Target


class _DLTensor(ctypes.Structure):
    """The struct at the beginning of a capsule's memory (source: ``DLTensor`` in dlpack.h, version 0)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = (ctypes.py_object, ctypes.c_char_p)


def empty(shape: tuple[int, ...], dtype: str, device: str) -> Any:
    """Allocate a tensor on a device.

    Raises
    ------
    DeviceMemory
        TensorFlow's allocator has no room for it.
    """
    try:
        with placed(device):
            return tf.raw_ops.Empty(shape=shape_tensor(shape), dtype=tf.as_dtype(dtype), init=False)
    except DeviceMemory as error:
        nbytes = math.prod(shape) * tf.as_dtype(dtype).size
        annotate(error, f"the allocation was {nbytes} bytes, a {dtype} tensor of shape {shape}")
        raise


def value_of(target: Target) -> Any:
    """Allocate the value of a variable on a device.

    Raises
    ------
    DeviceMemory
        As for ``empty``; the error names the variable.
    """
    try:
        return empty(target.shape, target.dtype, target.device)
    except DeviceMemory as error:
        error.variable = target.name
        annotate(error, f"variable: {target.name}")
        raise


@contextmanager
def placed(device: str) -> Iterator[None]:
    """Return a context in which ops run on a device, and TensorFlow's errors become our own."""
    with naming(device), tf.device(device):
        yield


def address(tensor: Any, device: str) -> int:
    """Wait for the device, and return the address of a tensor; it holds as long as the tensor lives."""
    with naming(device):
        if not tf.config.experimental.get_synchronous_execution():
            # TensorFlow waits for the device first, and then for the op that makes the tensor. That op may get memory
            # that was freed in between, while the device still works with it; a second wait covers that (source:
            # TFE_TensorHandleDevicePointer in c_api.cc).
            tf.experimental.dlpack.to_dlpack(tensor)
        capsule = tf.experimental.dlpack.to_dlpack(tensor)
    # The capsule lets go of the tensor at the end of this function.
    struct = _DLTensor.from_address(_pointer_of(capsule, b"dltensor"))
    return int(struct.data) + int(struct.byte_offset)


@contextmanager
def naming(device: str) -> Iterator[None]:
    """Turn TensorFlow's errors about a device into our own."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise DeviceMemory(
            f"{device} does not have enough free memory: {_first_line(error)}",
            hint="lower DeviceOptions(window_bytes=), the memory that a load takes beyond the variables; free other "
            "models; or let TensorFlow take more of the device (tf.config.experimental.set_memory_growth, "
            "TF_FORCE_GPU_ALLOW_GROWTH)",
        ) from error
    except (tf.errors.InternalError, tf.errors.UnknownError) as error:
        raise DeviceFailed(f"{device} failed: {_first_line(error)}", hint=LOST_HINT) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
