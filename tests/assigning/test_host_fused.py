"""Many assignments in one call: exact for every shape and dtype, and safe to update in place afterwards."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from fastassign.assigning.host import fused, memory
from fastassign.assigning.host.fused import Fusion
from fastassign.catalog.records import Extent, TensorRecord
from fastassign.matching.assignment import Assignment
from fastassign.options import LoadOptions
from fastassign.planning.batches import BatchLimits, make_batches
from fastassign.planning.lanes import NO_DEVICES
from fastassign.planning.routes import KERNEL_DTYPES, place
from fastassign.targets.variables import numpy_dtype_of, tf_target

SHAPES = [(), (1,), (3,), (16,), (4, 4), (5, 7), (2, 3, 4), (1, 64), (1000,)]


def values_of(shapes, dtype, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 100, shape).astype(numpy_dtype_of(dtype)) for shape in shapes]


def variables_of(shapes, dtype, device="CPU:0"):
    with tf.device(device):
        return [tf.Variable(tf.zeros(shape, dtype)) for shape in shapes]


def fusion_of(variables):
    """Plan the load of these variables from a file where they stand one after the other."""
    placements, offset = [], 0
    for i, variable in enumerate(variables):
        target = tf_target(variable, handles=True)
        record = TensorRecord(f"{i}", target.shape, target.dtype, extents=(Extent(offset, target.nbytes),))
        offset += target.nbytes
        placements.append(
            place(Assignment(record, target, "same"), LoadOptions(), repeated=True, devices=NO_DEVICES, slot_bytes=0)
        )
    sizes = BatchLimits(room=1 << 30, slot_bytes=0)
    (batch,) = make_batches(placements, LoadOptions(), sizes, NO_DEVICES, repeated=True)
    assert batch.route == "fused"
    return Fusion(batch)


def slab_of(fusion, values):
    with tf.device(fusion.device):
        slab, array = memory.empty(fusion.shape, fusion.dtype)
    slab_bytes = array.reshape(-1).view(np.uint8)
    for value, start in zip(values, fusion.batch.arena_starts, strict=True):
        memory.typed(slab_bytes, value.shape, fusion.dtype, start)[...] = value
    return slab, array


def assign(fusion, values):
    fusion.assign(*slab_of(fusion, values))


def assert_hold(variables, values):
    for variable, value in zip(variables, values, strict=True):
        assert variable.numpy().tobytes() == value.tobytes()


def address(variable):
    return np.asarray(variable.value()).ctypes.data


@pytest.mark.parametrize("dtype", sorted(KERNEL_DTYPES))
def test_every_shape_is_exact_again_and_again(dtype):
    variables = variables_of(SHAPES, dtype)
    fusion = fusion_of(variables)
    for seed in range(3):
        values = values_of(SHAPES, dtype, seed)
        assign(fusion, values)
        assert_hold(variables, values)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex128", "uint8"])
@pytest.mark.parametrize("copied_bytes", [0, 100])
def test_what_does_not_fill_its_rows_may_be_an_argument(dtype, copied_bytes, monkeypatch):
    monkeypatch.setattr(fused, "_COPIED_BYTES", copied_bytes)
    variables = variables_of(SHAPES, dtype)
    fusion = fusion_of(variables)
    for seed in range(2):
        values = values_of(SHAPES, dtype, seed)
        assign(fusion, values)
        assert_hold(variables, values)


def test_whole_rows_and_arguments_are_not_copied(monkeypatch):
    monkeypatch.setattr(fused, "_COPIED_BYTES", 100)
    shapes = [(16,), (64, 32), (33,), (4, 4)]
    variables = variables_of(shapes, "float32")
    fusion = fusion_of(variables)
    slab, array = slab_of(fusion, values_of(shapes, "float32", 0))
    first = array.ctypes.data
    fusion.assign(slab, array)
    assert [address(variable) - first for variable in variables] == list(fusion.batch.arena_starts)


def test_updates_in_place_change_no_neighbour():
    variables = variables_of([(16,)] * 4, "float32")
    values = values_of([(16,)] * 4, "float32", 0)
    assign(fusion_of(variables), values)
    for step in (1, 2):
        variables[1].assign_add(tf.ones((16,)))
        assert_hold([variables[0], *variables[2:]], [values[0], *values[2:]])
        assert_hold([variables[1]], [values[1] + np.float32(step)])


@pytest.mark.parametrize("shape", [(16,), (15,)])
def test_the_last_of_a_slab_may_be_updated_when_the_others_are_gone(shape):
    variables = variables_of([shape] * 3, "float32")
    values = values_of([shape] * 3, "float32", 0)
    assign(fusion_of(variables), values)
    kept = variables[1].value()
    for other in (variables[0], variables[2]):
        other.assign(tf.zeros(shape))
    variables[1].assign_add(tf.ones(shape))
    assert kept.numpy().tobytes() == values[1].tobytes()
    assert_hold([variables[1]], [values[1] + 1])


def test_an_optimizer_goes_on_from_there():
    """Updates in place, in graphs: each variable as if it were alone."""
    shapes = [(16,), (4, 16), (3,), (32, 8)]
    ours, plain = variables_of(shapes, "float32"), variables_of(shapes, "float32")
    values = values_of(shapes, "float32", 0)
    assign(fusion_of(ours), values)
    for variable, value in zip(plain, values, strict=True):
        variable.assign(value)

    @tf.function
    def step(variables):
        for i, variable in enumerate(variables):
            variable.assign_sub(0.1 * tf.cast(i + 1, tf.float32) * variable)
            tf.raw_ops.ResourceApplyGradientDescent(
                var=variable.handle, alpha=0.5, delta=tf.ones_like(variable), use_locking=False
            )

    for _ in range(3):
        step(ours)
        step(plain)
        assert_hold(ours, [variable.numpy() for variable in plain])


def test_a_marked_embedding_is_assigned_without_a_copy():
    (table,) = variables_of([(1024, 512)], "float32")
    tf.gather(table, [0])
    value = np.ones((1024, 512), np.float32)
    fusion = fusion_of([table])
    slab, array = slab_of(fusion, [value])
    fusion.assign(slab, array)
    assert address(table) == array.ctypes.data
    assert_hold([table], [value])


def test_functions_go_with_their_owner():
    variables = variables_of([(3,)], "float32")
    fusion = fusion_of(variables)
    name = fusion._function.name
    assert context.context().has_function(name)
    del fusion
    gc.collect()
    assert not context.context().has_function(name)
