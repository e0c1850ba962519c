"""Experiments: TensorFlow's use of a card's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastassign.assigning.device import tensors
from fastassign.assigning.host import memory
from fastassign.benchmarks.device.card import Card, sync
from fastassign.benchmarks.device.copies import leased, opened
from fastassign.benchmarks.limits.peak import device_info
from fastassign.benchmarks.questions.experiment import Answer, Scale
from fastassign.devices.cuda import CurrentContext

# Of dlpack.h: memory of a CUDA card.
_DLPACK_CUDA = 2


def aliases(card: Card, scale: Scale) -> Answer:
    """Do the pieces of a slab share its memory, or are they copies?"""
    import tensorflow as tf

    del scale
    slab = tensors.empty((64, 16), "float32", card.name)
    base = tensors.address(slab, card.name)
    with tensors.placed(card.name):
        pieces = {
            "SplitV": tf.raw_ops.SplitV(value=slab, size_splits=memory.shape_tensor((16, 8, 40)), axis=0, num_split=3),
            "Unpack": tf.raw_ops.Unpack(value=slab, num=64, axis=0)[:3],
            "Reshape, Unpack": tf.raw_ops.Unpack(value=tf.reshape(slab, (4, 16, 16)), num=4, axis=0)[:3],
            "StridedSlice": [slab[8:16], slab[16:17]],
            "Slice, a part of each row": [tf.raw_ops.Slice(input=slab, begin=[0, 0], size=[64, 15])],
            "Reshape": [tf.reshape(slab, (16, 64))],
            "Identity": [tf.raw_ops.Identity(input=slab)],
            "Bitcast": [tf.bitcast(slab, tf.int64) if slab.dtype.size == 8 else tf.bitcast(slab, tf.uint32)],
        }
    inside = {
        name: [_offset_in(tensors.address(piece, card.name), base, 64 * 64) for piece in each]
        for name, each in pieces.items()
    }
    words = ", ".join(f"{name} {'aliases' if None not in each else 'COPIES'}" for name, each in inside.items())
    return Answer(words, {"offsets": inside})


def _offset_in(address: int, base: int, nbytes: int) -> int | None:
    return address - base if base <= address < base + nbytes else None


def addresses(card: Card, scale: Scale) -> Answer:
    """Is the address of an empty tensor stable and aligned, and does a variable keep it after the assignment?"""
    import tensorflow as tf

    rows = []
    for count in (1, 15, 1024, scale.nbytes // 4):
        tensor = tensors.empty((count,), "float32", card.name)
        first, second = tensors.address(tensor, card.name), tensors.address(tensor, card.name)
        with tf.device(card.name):
            variable = tf.Variable(tf.zeros((count,)))
        with tensors.placed(card.name):
            memory.assign(variable, tensor, 4 * count)
        of_variable = tensors.address(variable.value(), card.name)
        alignment = first & -first
        rows.append(
            {"nbytes": 4 * count, "stable": first == second, "alignment": alignment, "becomes": of_variable == first}
        )
    least = min(row["alignment"] for row in rows)
    stable, becomes = all(row["stable"] for row in rows), all(row["becomes"] for row in rows)
    return Answer(f"stable: {stable}; aligned to {least} bytes; the variable has it: {becomes}", {"tensors": rows})


def placement(card: Card, scale: Scale) -> Answer:
    """Where does TensorFlow place variables and empty tensors of each dtype, if the card is asked for?"""
    import tensorflow as tf

    del scale
    names = ("float32", "bfloat16", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32",
             "int64", "uint64", "bool", "complex64", "float8_e4m3fn", "float8_e5m2", "int4")  # fmt: skip
    found: dict[str, dict[str, str]] = {}
    for name in names:
        dtype = tf.as_dtype(name)
        found[name] = {
            "variable": _where(lambda d=dtype: _variable(card, d).handle.device),  # type: ignore[misc]
            "empty": _where(lambda n=name: _exported(tensors.empty((16,), n, card.name))),  # type: ignore[misc]
            "value": _where(lambda d=dtype: _exported(_variable(card, d).value())),  # type: ignore[misc]
        }
    elsewhere = [name for name, each in found.items() if not each["variable"].endswith(card.short)]
    return Answer(f"variables that are not on {card.short}: {', '.join(elsewhere) or 'none'}", {"dtypes": found})


def _variable(card: Card, dtype: Any) -> Any:
    import tensorflow as tf

    with tf.device("CPU:0"):
        value = tf.constant(np.zeros((16,), dtype.as_numpy_dtype))
    with tf.device(card.name):
        return tf.Variable(value)


def _exported(tensor: Any) -> str:
    """Return the device of a tensor according to TensorFlow and to DLPack."""
    import tensorflow as tf

    capsule = tf.experimental.dlpack.to_dlpack(tensor)
    struct = tensors._DLTensor.from_address(tensors._pointer_of(capsule, b"dltensor"))
    kind = "CUDA" if struct.device_type == _DLPACK_CUDA else f"type {struct.device_type}"
    return f"{tensor.device}, DLPack {kind}:{struct.device_id}"


def _where(ask: Callable[[], str]) -> str:
    try:
        return str(ask())
    except Exception as error:  # noqa: BLE001 - the error is the answer
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"


def copy_on_read(card: Card, scale: Scale) -> Answer:
    """Does a gather mark its variable there, and does DisableCopyOnRead clear the mark?"""
    import tensorflow as tf

    shape = (max(scale.nbytes // 4096, 2), 1024)
    with tf.device(card.name):
        table = tf.Variable(tf.zeros(shape))
        plain = _reads_alias(card, table)
        tf.gather(table, [0])
        marked = _reads_alias(card, table)
        tf.raw_ops.DisableCopyOnRead(resource=table.handle)
        cleared = _reads_alias(card, table)
        tf.gather(table, [0])
        tensor = tensors.empty(shape, "float32", card.name)
        first = tensors.address(tensor, card.name)
        memory.assign(table, tensor, scale.nbytes)
        assigned = tensors.address(table.value(), card.name) == first
    figures = {"plain": plain, "after_gather": marked, "after_disable": cleared, "assigned_without_copy": assigned}
    return Answer(f"reads are aliases: {figures}", figures)


def _reads_alias(card: Card, variable: Any) -> bool:
    first, second = variable.value(), variable.value()
    return tensors.address(first, card.name) == tensors.address(second, card.name)


def accounting(card: Card, scale: Scale) -> Answer:
    """How do TensorFlow and the driver account for the card's memory?"""
    import tensorflow as tf

    sync()
    with CurrentContext(card.driver, card.ordinal):
        free = int(card.driver.call("cuMemGetInfo"))
    try:
        device_info(card.short)
        tf.config.experimental.reset_memory_stats(card.short)
        before = device_info(card.short)
    except ValueError as error:  # a device whose allocator keeps no statistics
        return Answer(f"not measured: {error}", {"free_by_the_driver": free})
    tensor = tensors.empty((scale.nbytes,), "uint8", card.name)
    tensors.address(tensor, card.name)
    held = device_info(card.short)
    del tensor
    after = device_info(card.short)
    figures = {"before": before, "held": held, "after": after, "free_by_the_driver": free}
    grown = held["current"] - before["current"]
    return Answer(f"a tensor of {scale.nbytes} bytes counts {grown}; gone it counts {after['current']}", figures)


def recycling(card: Card, scale: Scale) -> Answer:
    """Is memory that the allocator hands out again idle once its address is known?"""
    import tensorflow as tf

    count, wrong = scale.nbytes // 4, 0
    with leased(card, 1, scale.nbytes) as (lease,), opened(card) as stream:
        lease.memory.view(np.float32)[:] = 5.0
        for _ in range(4 * scale.repeats):
            with tf.device(card.name):
                old = tf.fill((count,), 2.0)
                result = old
                for _ in range(8):
                    result = result * 1.0 + old * 0.0
            del old
            tensor = tensors.empty((count,), "float32", card.name)
            address = tensors.address(tensor, card.name)
            with stream:
                stream.copy(address, lease.address, scale.nbytes)
                mark = stream.record()
            mark.wait()
            wrong += int(not (tensor.numpy() == 5.0).all()) + int(not (result.numpy() == 2.0).all())
    return Answer(f"{wrong} of {8 * scale.repeats} tensors were wrong", {"wrong": wrong, "checked": 8 * scale.repeats})
