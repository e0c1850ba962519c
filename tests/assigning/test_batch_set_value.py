"""tf_keras' batch_set_value through fastassign, compared with its own."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from support.differential import observe
from support.models import chain
from support.patched import accelerated, told_why

BATCH_SET_VALUES = [
    (tf.float32, (2, 3), np.arange(6.0).reshape(2, 3)),
    (tf.float32, (), 1.1),
    (tf.float32, (3,), [1, 2, 2**60 + 1]),
    (tf.float32, (3,), ["1.5", "2", "nan"]),
    (tf.float16, (2,), np.array([1e6, 0.1])),
    (tf.bfloat16, (2,), [0.1, 3]),
    (tf.float64, (2,), np.float32([0.1, 0.2])),
    (tf.int8, (2,), np.array([300, -1])),
    (tf.int8, (2,), [300, -1]),
    (tf.int32, (), True),
    (tf.int64, (2,), np.array([1.9, -1.9])),
    (tf.uint64, (), 2**64 - 1),
    (tf.bool, (2,), [0.0, 2.0]),
    (tf.complex64, (2,), [1j, 2]),
    (tf.float32, (2,), np.array([1, 2], ">f8")),
    (tf.float32, (2, 2), np.asfortranarray([[1.0, 2], [3, 4]])),
    (tf.float32, (2,), np.arange(8.0)[::4]),
    (tf.float32, (2,), tf.constant([1.0, 2.0])),
    (tf.float32, (0, 3), np.zeros((0, 3))),
    (tf.float32, (2,), np.zeros(3)),
    (tf.float32, (2,), 5.0),
    (tf.float32, (), "text"),
    (tf.float32, (2,), [1.0, [2.0]]),
    (tf.string, (2,), ["a", "b"]),
]


@pytest.mark.parametrize(("dtype", "shape", "value"), BATCH_SET_VALUES)
def test_batch_set_value(dtype, shape, value):
    with tf.device("CPU:0"):
        start = "" if dtype == tf.string else tf.cast(0, dtype)
        one, other = (tf.Variable(tf.fill(shape, start), name="v") for _ in range(2))
        stock = observe(lambda: tf_keras.backend.batch_set_value([(one, value)]))
        with accelerated() as calls:
            ours = observe(lambda: tf_keras.backend.batch_set_value([(other, value)]))
    if stock.error is None:
        assert ours.error is None and ours.result is None
        assert [call.levelname for call in calls] == ["INFO" if dtype == tf.string else "DEBUG"]
    else:
        assert isinstance(ours.error, type(stock.error)) and str(ours.error) == str(stock.error)
    assert np.array_equal(one.numpy(), other.numpy(), equal_nan=dtype.is_floating)


def test_batch_set_value_of_many():
    variables = [tf.Variable(np.zeros(n, "f4")) for n in range(50)]
    pairs = [(v, np.full(v.shape, n, "f8")) for n, v in enumerate(variables)]
    with accelerated(ours=2, stock=1) as calls:
        assert tf_keras.backend.batch_set_value(pairs) is None
        assert all(np.all(v.numpy() == n) for n, v in enumerate(variables))
        # The later value stays; the name that tf_keras itself uses.
        tf_keras.src.backend.batch_set_value([(variables[1], [5.0]), (variables[1], [6.0])])
        tf_keras.backend.batch_set_value(zip(variables[:2], [[], [7.0]], strict=True))
    assert variables[1].numpy() == 7.0
    assert "(50 variables)" in calls[0].getMessage() and "only once" in calls[2].getMessage()
    with accelerated(ours=1, stock=0):
        tf_keras.backend.batch_set_value([])


def test_batch_set_value_changes_nothing_when_something_does_not_fit():
    variables = [tf.Variable([0.0]), tf.Variable([0.0])]
    with fa.accelerate(), pytest.raises(ValueError, match="Shape mismatch"):
        tf_keras.backend.batch_set_value([(variables[0], [1.0]), (variables[1], [1.0, 2.0])])
    assert variables[0].numpy() == variables[1].numpy() == 0


def test_set_weights_goes_through_it():
    model = chain(tf_keras, 5, 3)
    values = [np.random.default_rng(0).normal(size=w.shape) for w in model.weights]
    with accelerated(stock=0) as calls:
        model.set_weights(values)
    assert calls
    assert all(np.array_equal(w.numpy(), v.astype("f4")) for w, v in zip(model.weights, values, strict=True))


def test_batch_set_value_in_a_traced_function():
    variable = tf.Variable([0.0])

    @tf.function
    def step():
        tf_keras.backend.batch_set_value([(variable, [3.0])])
        return tf.constant(1)

    with accelerated(ours=1, stock=0):
        step()
    assert variable.numpy() == 3
    variable.assign([0.0])
    step()
    assert variable.numpy() == 3


def test_batch_set_value_of_mirrored_variables():
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        variable = tf.Variable([0.0, 0.0])
    with accelerated(ours=1, stock=0):
        tf_keras.backend.batch_set_value([(variable, [1, 2])])
    assert [replica.numpy().tolist() for replica in variable.values] == [[1, 2], [1, 2]]


@pytest.mark.parametrize("kept", [True, False])
def test_batch_set_value_in_a_graph(kept):
    """Variables that tf_keras does not know are assigned by it, in the session that it takes for any."""
    with tf.Graph().as_default():
        if kept:
            variable = chain(tf_keras, 3).weights[0]
        else:
            variable = tf.compat.v1.get_variable("v", shape=(4, 3), use_resource=True)
        value = np.arange(12.0).reshape(4, 3)
        with accelerated(ours=int(kept), stock=int(not kept)):
            tf_keras.backend.batch_set_value([(variable, value)])
        assert np.array_equal(tf_keras.backend.get_value(variable), value)
    tf_keras.backend.clear_session()


def test_batch_set_value_of_what_is_no_variable():
    first, _ = told_why(lambda: tf_keras.backend.batch_set_value([(tf.constant(1.0), 2.0)]), "is not a variable")
    assert isinstance(first.error, AttributeError)
