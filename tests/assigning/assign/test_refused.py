"""``fastassign.assign``, eagerly: what does not fit is refused, and nothing changes."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from fastassign.errors import Unsupported
from support.pairs import COMPOSITE, ORDINARY, SHAPE, read, values, variable

WRONG = {**ORDINARY, **COMPOSITE}
WRONG_SHAPES = ((4, 3), (3,), (), (3, 4, 1), (0, 4))


def text_of(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_shapes_have_the_text_of_stock(kind):
    """That of the variable's own ``assign``; Keras 3 shows the value too, which is the same for both."""
    made, good = WRONG[kind](), variable()
    for shape in WRONG_SHAPES:
        wanted = text_of(lambda shape=shape: made.assign(np.zeros(shape, np.float32)))
        with pytest.raises(fa.Mismatch) as caught:
            fa.assign([(good, values()), (made, np.zeros(shape, np.float32))])
        assert str(caught.value) == wanted
        assert caught.value.tensor == "array 1" and caught.value.variable
        assert not read(good).any()


def test_wrong_shape_of_a_tensor_in_a_file(files):
    made, good = variable(), variable()
    catalog = fa.inspect(files[0])
    with pytest.raises(fa.Mismatch, match=re.escape("(50, 40)")) as caught:
        fa.assign([(good, catalog["a/kernel"]), (made, catalog["a/gzip"])])
    assert caught.value.tensor == "a/gzip"
    assert not read(good).any()


def test_wrong_open_shape_has_the_text_of_stock():
    made = tf.Variable(np.zeros((2, 3), np.float32), shape=(None, 3))
    for shape in ((3, 4), (3,)):
        wanted = text_of(lambda shape=shape: made.assign(np.zeros(shape, np.float32)))
        assert text_of(lambda shape=shape: fa.assign([(made, np.zeros(shape))])) == wanted
    assert read(made).shape == (2, 3)


NO_NUMBERS = {
    "texts": np.full(SHAPE, "x"),
    "numbers_as_texts": np.full(SHAPE, "1"),
    "bytes": np.full(SHAPE, b"x"),
    "objects": np.full(SHAPE, None),
    "dates": np.zeros(SHAPE, "M8[s]"),
    "times": np.zeros(SHAPE, "m8[s]"),
    "records": np.zeros(SHAPE, [("a", "f4"), ("b", "f4")]),
    "records_of_one": np.zeros(SHAPE, [("a", "f4")]),
    "void": np.zeros(SHAPE, "V4"),
    "text_tensor": tf.fill(SHAPE, "x"),
    "list_of_texts": [["x"] * 4] * 3,
    "nones": [[None] * 4] * 3,
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number(kind):
    made, good = variable(), variable()
    with pytest.raises(fa.Mismatch, match="can't become a value of") as caught:
        fa.assign([(good, values()), (made, NO_NUMBERS[kind])])
    assert caught.value.tensor == "array 1"
    assert not read(good).any() and not read(made).any()


@pytest.mark.parametrize("value", [None, "x", {}, {1, 2}, object(), b"xy", lambda: 0])
def test_what_is_no_array(value):
    made, good = variable(()), variable()
    with pytest.raises(fa.Mismatch):
        fa.assign([(good, values()), (made, value)])
    assert not read(good).any() and not read(made).any()


def test_ragged_lists():
    good = variable()
    with pytest.raises(ValueError, match="inhomogeneous"):
        fa.assign([(good, values()), (variable((2,)), [[1], [1, 2]])])
    assert not read(good).any()


@pytest.mark.parametrize("from_file", [False, True])
def test_variables_of_texts(from_file, files):
    made, good = tf.Variable(np.full(SHAPE, "x")), variable()
    catalog = fa.inspect(files[0])
    with pytest.raises(Unsupported, match="string"):
        fa.assign([(good, catalog["a/kernel"]), (made, catalog["a/kernel"] if from_file else np.full(SHAPE, "y"))])
    assert not read(good).any()
    assert (read(made) == b"x").all()


def test_opaque_bytes_without_meaning(files):
    made, good = variable(dtype="float32"), variable()
    catalog = fa.inspect(files[0])
    with pytest.raises(fa.Mismatch):
        fa.assign([(good, catalog["a/kernel"]), (made, catalog["a/opaque"])])
    assert not read(good).any()


@pytest.mark.parametrize(
    "thing",
    [5, None, "w", np.zeros(SHAPE), tf.zeros(SHAPE), keras.Input((3,)), tf_keras.Input((3,)), tf_keras.layers.Dense(3),
     keras.layers.Dense(3), object()],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_what_is_no_variable(thing):
    good = variable()
    with pytest.raises(TypeError, match="is not a variable"):
        fa.assign([(good, values()), (thing, values())])
    assert not read(good).any()


@pytest.mark.parametrize("make", [lambda v: [v], lambda v: [(v,)], lambda v: [(v, 1, 2)], lambda v: 5, lambda v: v])
def test_what_are_no_pairs(make):
    made = variable()
    with pytest.raises((TypeError, ValueError)):
        fa.assign(make(made))
    assert not read(made).any()
