"""``fastassign.assign``, eagerly: values of every kind, and how they are cast."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from fastassign.streaming.buffers import aligned_array
from support.pairs import ORDINARY, VALUES, holds, read, values, variable


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_every_kind(kind):
    one, other = variable(), variable()
    tf_keras.backend.batch_set_value([(one, VALUES[kind])])
    fa.assign([(other, VALUES[kind])])
    assert holds(other, read(one))
    assert read(one).any()


def test_keras_variable_as_a_value():
    made, source = variable(), keras.Variable(values(), dtype="float32")
    fa.assign([(made, source)])
    assert holds(made, values())


@pytest.mark.parametrize("value", [1, 1.5, True, np.float64(2.5), np.int8(3), np.array(4), [5][0], tf.constant(6)])
def test_scalars(value):
    made = variable(())
    fa.assign([(made, value)])
    assert holds(made, np.asarray(value, np.float32))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1, 1, 1), (7,), (2, 3, 4, 5), (33_000,), (300, 200)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
def test_shapes(shape, dtype):
    made = variable(shape, dtype)
    report = fa.assign([(made, values(shape, dtype))])
    assert holds(made, values(shape, dtype))
    assert report.nbytes == values(shape, dtype).nbytes


FLOATS = ("bfloat16", "float16", "float32", "float64")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
COMPLEX = ("complex64", "complex128")
DTYPES = (*FLOATS, *INTEGERS, "bool", *COMPLEX)


def sample(dtype):
    """Values at the edges of a dtype, and between."""
    kind = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    if dtype == "bool":
        return np.array([True, False, True])
    if dtype in INTEGERS:
        info = np.iinfo(kind)
        return np.array([info.min, info.max, 0, 1, 77, 127, info.max // 2 + 1], kind)
    plain = np.array([0.0, -0.0, 1.0, -1.5, 2.5, 77.7, 1 / 3, 126.9, 1.00390625, 1.01171875, 300.5])
    if dtype in COMPLEX:
        return (plain + 1j * plain[::-1]).astype(kind)
    return plain.astype(kind)


@pytest.mark.filterwarnings("ignore")  # of what numpy says of each pair
@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_casts_like_stock(source, to):
    array = sample(source)
    one, other = variable(array.shape, to), variable(array.shape, to)
    tf_keras.backend.batch_set_value([(one, array)])
    report = fa.assign([(other, array)])
    assert holds(other, read(one))
    assert len(report.cast) == (source != to)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", [*FLOATS, *COMPLEX])
@pytest.mark.parametrize("source", [*FLOATS, *COMPLEX])
def test_casts_of_what_is_no_number_like_stock(source, to):
    kind = tf.as_dtype(source).as_numpy_dtype
    array = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 65520, 3.4e38, 1e-40, 5e-324]).astype(kind)
    one, other = variable(array.shape, to), variable(array.shape, to)
    tf_keras.backend.batch_set_value([(one, array)])
    fa.assign([(other, array)])
    assert holds(other, read(one))


@pytest.mark.parametrize("to", ["float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_casts_into_small_dtypes(to):
    kind = tf.as_dtype(to).as_numpy_dtype
    made = tf.Variable(np.zeros(5, kind))
    for array in (np.arange(5, dtype=np.float32), np.arange(5).astype(kind)):
        fa.assign([(made, array)])
        assert holds(made, array.astype(kind))


def test_dtype_inside_of_an_autocasting_scope():
    """Where stock rounds the master weight to half precision."""
    made = ORDINARY["tf_keras_mixed"]()
    from tf_keras.src.mixed_precision import autocast_variable

    with autocast_variable.enable_auto_cast_variables(tf.float16):
        fa.assign([(made, values() / 3)])
    assert holds(made, values() / 3)


def test_discarded_imaginary_parts_are_warned_of():
    one, other = variable(), variable()
    for assign, made in ((tf_keras.backend.batch_set_value, one), (fa.assign, other)):
        with pytest.warns(np.exceptions.ComplexWarning, match="imaginary part"):
            assign([(made, values() + 1j)])
    assert holds(other, read(one))


@pytest.mark.parametrize("threads", [1, 4])
def test_warning_that_is_an_error(threads):
    """It comes while values are made, so the variables of this batch are as they were."""
    first, second = variable(), variable()
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        with pytest.raises(np.exceptions.ComplexWarning) as caught:
            fa.assign([(first, values()), (second, values() + 1j)], options=fa.LoadOptions(threads=threads))
    assert caught.value.assigned == ()
    assert not read(first).any() and not read(second).any()


@pytest.mark.parametrize("size", [5, 1000, 300_000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_may_change_after_the_call(dtype, size):
    made = variable((size,))
    # Aligned as TensorFlow wants it: it would keep the array itself.
    array = aligned_array(8 * size).view(dtype)[:size]
    array[:] = 1
    fa.assign([(made, array)])
    array[:] = 2
    assert (read(made) == 1).all()


@pytest.mark.parametrize("size", [5, 300_000])
def test_two_variables_of_one_array(size):
    one, two, array = variable((size,)), variable((size,)), np.ones(size, np.float32)
    fa.assign([(one, array), (two, array)])
    for _ in range(2):
        one.assign_add(array)
    assert (read(one) == 3).all() and (read(two) == 1).all() and (array == 1).all()


@pytest.mark.parametrize("size", [5, 300_000])
def test_a_value_that_was_read_does_not_change(size):
    made = variable((size,))
    fa.assign([(made, np.full(size, 1))])
    kept, tensor = made.numpy(), made.value()
    for i in range(2, 6):
        fa.assign([(made, np.full(size, i))])
    assert (kept == 1).all() and (tensor.numpy() == 1).all() and (read(made) == 5).all()


@pytest.mark.parametrize("size", [5, 3_000_000])
def test_two_variables_change_places(size):
    one, two = tf.Variable(np.ones(size, np.float32)), tf.Variable(np.zeros(size, np.float32))
    fa.assign([(one, two.value()), (two, one.value())])
    assert (read(one) == 0).all() and (read(two) == 1).all()
    fa.assign([(one, two), (two, one)])
    assert (read(one) == 1).all() and (read(two) == 0).all()
