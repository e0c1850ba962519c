"""Many assignments in one call: exact for every shape and dtype, and safe to update in place afterwards."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from fastassign.assigning import host
from fastassign.assigning.fused import FusedAssignments, Packed
from fastassign.targets.variables import numpy_dtype_of, tf_target

SHAPES = [(), (1,), (3,), (16,), (4, 4), (5, 7), (2, 3, 4), (1, 64), (1000,)]
DTYPES = ["float32", "float16", "bfloat16", "float64", "int32", "int64", "uint8", "bool", "complex64"]


def values_of(shapes, dtype, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 100, shape).astype(numpy_dtype_of(dtype)) for shape in shapes]


def variables_of(shapes, dtype):
    with tf.device("CPU:0"):
        return [tf.Variable(tf.zeros(shape, dtype)) for shape in shapes]


def packed_of(variables, values):
    """Put values one after the other into a tensor of TensorFlow's, at steps of 64 bytes."""
    targets = [tf_target(variable, handles=True) for variable in variables]
    rooms = [-(-value.nbytes // 64) * 64 for value in values]
    with tf.device("CPU:0"):
        arena = host.Arena(sum(rooms), dtype=targets[0].dtype)
    for target, value, start in zip(targets, values, np.cumsum([0, *rooms]), strict=False):
        arena.view(int(start), target.shape, target.dtype)[...] = value
    return Packed(targets, rooms, arena.tensor)


def assert_hold(variables, values):
    for variable, value in zip(variables, values, strict=True):
        assert variable.numpy().tobytes() == value.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_shape_is_exact_packed_and_single_again_and_again(dtype):
    variables, others = variables_of(SHAPES, dtype), variables_of(SHAPES, dtype)
    single = [tf_target(variable, handles=True) for variable in others]
    fused = FusedAssignments()
    # The function is found by its targets, which `packed_of` makes anew: those of the first packing serve all.
    first = packed_of(variables, values_of(SHAPES, dtype, 0))
    for seed in range(3):
        values = values_of(SHAPES, dtype, seed)
        packed = Packed(first.targets, first.rooms, packed_of(variables, values).slab)
        fused.assign(single, values, packed)
        assert_hold(variables, values)
        assert_hold(others, values)
    assert len(fused._functions) == 1


def test_updates_in_place_change_no_neighbour():
    variables = variables_of([(16,)] * 4, "float32")
    values = values_of([(16,)] * 4, "float32", 0)
    FusedAssignments().assign([], [], packed_of(variables, values))
    for step in (1, 2):
        variables[1].assign_add(tf.ones((16,)))
        assert_hold([variables[0], *variables[2:]], [values[0], *values[2:]])
        assert_hold([variables[1]], [values[1] + np.float32(step)])


def test_the_last_of_a_slab_may_be_updated_when_the_others_are_gone():
    variables = variables_of([(16,)] * 3, "float32")
    values = values_of([(16,)] * 3, "float32", 0)
    FusedAssignments().assign([], [], packed_of(variables, values))
    kept = variables[1].value()
    for other in (variables[0], variables[2]):
        other.assign(tf.zeros((16,)))
    variables[1].assign_add(tf.ones((16,)))
    assert kept.numpy().tobytes() == values[1].tobytes()
    assert_hold([variables[1]], [values[1] + 1])


def test_a_value_of_another_shape_is_refused_by_tensorflow():
    (variable,) = variables_of([(3,)], "float32")
    with pytest.raises(tf.errors.InvalidArgumentError):
        FusedAssignments().assign([tf_target(variable, handles=True)], [np.zeros((4,), np.float32)])
    assert_hold([variable], [np.zeros((3,), np.float32)])


def test_a_marked_embedding_is_assigned_without_a_copy():
    with tf.device("CPU:0"):
        table = tf.Variable(tf.zeros((1024, 512)))
    tf.gather(table, [0])
    value = np.ones((1024, 512), np.float32)
    tensor, array = host.empty((1024, 512), "float32")
    array[...] = value
    FusedAssignments().assign([tf_target(table, handles=True)], [tensor])
    assert np.asarray(table.value()).ctypes.data == array.ctypes.data
    assert_hold([table], [value])


def test_functions_go_with_their_owner():
    variables = variables_of([(3,)], "float32")
    targets = [tf_target(variable, handles=True) for variable in variables]
    fused = FusedAssignments()
    fused.assign(targets, values_of([(3,)], "float32", 0))
    (function,) = fused._functions.values()
    name = function.name
    assert context.context().has_function(name)
    del fused, function
    gc.collect()
    assert not context.context().has_function(name)
