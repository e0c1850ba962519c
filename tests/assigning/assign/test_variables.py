"""``fastassign.assign``, eagerly: variables of every kind."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute.sharded_variable import ShardedVariable

import fastassign as fa
from support.pairs import COMPOSITE, ORDINARY, SHAPE, holds, mirrored, read, values, variable


def summed():
    return tf.Variable(
        np.zeros(SHAPE, np.float32),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def sharded():
    return ShardedVariable([variable((2, 4)), variable((1, 4))], name="sharded")


@pytest.mark.parametrize("kind", ORDINARY)
def test_variables_of_every_kind(kind):
    made, wanted = ORDINARY[kind](), values()
    report = fa.assign([(made, wanted)])
    assert holds(made, wanted)
    assert report.assigned == 1 and report.routes == {"arena": 1}


@pytest.mark.parametrize("kind", COMPOSITE)
def test_variables_of_several_components(kind):
    made, wanted = COMPOSITE[kind](), values()
    report = fa.assign([(made, wanted)])
    assert report.routes == {"assign": 1}
    parts = (made._value if isinstance(made, keras.Variable) else made).values
    assert len(parts) == 2 and all(holds(part, wanted) for part in parts)


def test_variables_that_are_summed():
    one, other, wanted = mirrored(summed), mirrored(summed), values()
    one.assign(wanted)
    fa.assign([(other, wanted)])
    assert all(holds(b, read(a)) and holds(a, wanted / 2) for a, b in zip(one.values, other.values, strict=True))


def test_sharded_variables():
    made, wanted = sharded(), values()
    fa.assign([(made, wanted)])
    assert holds(made.variables[0], wanted[:2]) and holds(made.variables[1], wanted[2:])


def test_optimizer_variables():
    optimizer = keras.optimizers.Adam(0.5)
    optimizer.build([ORDINARY["keras"]()])
    fa.assign([(optimizer.iterations, 7), (optimizer._learning_rate, 0.25)])
    assert read(optimizer.iterations) == 7 and read(optimizer._learning_rate) == 0.25
    # A constant of the process stands behind such values: others that were made of it are as they were.
    assert read(keras.optimizers.Adam(0.5)._learning_rate) == 0.5
    assert tf.constant(0.5).numpy() == 0.5


@pytest.mark.parametrize("rows", [4, 3000])
def test_embeddings_that_were_looked_up(rows):
    """A lookup marks its variable: what is assigned then is copied, or the mark is taken away."""
    made = tf.Variable(np.zeros((rows, 100), np.float32))
    for seed in range(2):
        assert tf.gather(made, [1, 2]).shape == (2, 100)
        wanted = values((rows, 100), seed=seed)
        fa.assign([(made, wanted)])
        assert holds(made, wanted)
        assert tf.gather(made, [3]).numpy().tobytes() == wanted[3].tobytes()


def test_open_shapes():
    made = tf.Variable(np.zeros((2, 3), np.float32), shape=(None, 3))
    for rows in (4, 1, 0):
        wanted = values((rows, 3))
        fa.assign([(made, wanted)])
        assert holds(made, wanted)
    free = tf.Variable(1.0, shape=tf.TensorShape(None))
    fa.assign([(free, values())])
    assert holds(free, values())


def test_variables_on_another_device():
    with tf.device("CPU:1"):
        made = variable()
    fa.assign([(made, values())])
    with tf.device("CPU:1"):
        doubled = made * 2
    assert made.device.endswith("CPU:1") and doubled.numpy().tobytes() == (values() * 2).tobytes()


def test_variables_are_let_go_of():
    """Without the collector: they are large."""
    gc.collect()
    gc.disable()
    try:
        made = variable()
        fa.assign([(made, values())])
        alive = weakref.ref(made)
        del made
        assert alive() is None
    finally:
        gc.enable()
