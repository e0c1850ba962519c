"""Models built without initial values: no code ever sees a variable without one."""

from __future__ import annotations

import copy
import tempfile
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from fastassign.targets.deferred import PLAIN, DeferredVariable
from support import differential as d

BOTH = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])


def build(k, seed=1):
    k.utils.set_random_seed(seed)
    inputs = k.layers.Input((6, 4))
    x = k.layers.LSTM(3, return_sequences=True)(inputs)
    x = k.layers.MultiHeadAttention(2, 3)(x, x)
    x = k.layers.Bidirectional(k.layers.GRU(2))(x)
    x = k.layers.BatchNormalization()(x)
    return k.Model(inputs, k.layers.Dense(2, kernel_initializer="orthogonal")(x))


def deferred(k, seed=1, build=build):
    with fa.deferred_init():
        return build(k, seed)


def recurrent(k, seed=1):
    """Less of it: tracing a training step takes seconds for each recurrent layer."""
    k.utils.set_random_seed(seed)
    inputs = k.layers.Input((6, 4))
    x = k.layers.BatchNormalization()(k.layers.LSTM(3)(inputs))
    return k.Model(inputs, k.layers.Dense(2, kernel_initializer="orthogonal")(x))


def inner(variable):
    return getattr(variable, "_value", getattr(variable, "_variable", variable))


def waiting(model):
    return sum(type(inner(variable)) is DeferredVariable for variable in model.variables)


def contents(model):
    return [np.asarray(variable).tobytes() for variable in model.variables]


@BOTH
def test_nothing_is_made_until_it_is_needed(k):
    model = deferred(k)
    assert waiting(model) == len(model.variables) > 15
    assert isinstance(inner(model.variables[0]), tf.Variable)
    assert model.variables[0].shape == build(k).variables[0].shape
    model.count_params()
    model.get_config()
    model.summary(print_fn=lambda *_: None)
    assert waiting(model) == len(model.variables)


def test_values_are_those_of_building_without_it():
    model, stock = deferred(keras), build(keras)
    assert contents(model) == contents(stock)
    assert waiting(model) == 0
    assert all(type(inner(variable)) is PLAIN for variable in model.variables)


USES = {
    "numpy": lambda v: v.numpy(),
    "value": tf.convert_to_tensor,
    "assign": lambda v: v.assign(tf.zeros(v.shape)),
    "assign_add": lambda v: v.assign_add(tf.ones(v.shape)),
    "an op": lambda v: tf.matmul(tf.ones((1, 3)), inner(v)),
    "a raw op": lambda v: tf.raw_ops.ReadVariableOp(resource=inner(v).handle, dtype=tf.float32),
    "gather": lambda v: tf.gather(inner(v), [0]),
    "a function": lambda v: tf.function(lambda: inner(v) * 2)(),
    "copy": lambda v: copy.deepcopy(inner(v)),
    "is_initialized": lambda v: inner(v).is_initialized(),
    "checkpoint": lambda v: checkpoint(inner(v)),
    "tape": lambda v: tape(inner(v)),
}


def checkpoint(variable):
    with tempfile.TemporaryDirectory() as folder:
        return tf.train.Checkpoint(v=variable).write(f"{folder}/c")


def tape(variable):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(variable * variable)
    return tape.gradient(loss, variable).numpy()


@BOTH
@pytest.mark.parametrize("use", USES)
def test_every_use_makes_the_value_first(k, use):
    if use == "an op" and k is tf_keras:
        k.utils.set_random_seed(0)
    found = []
    for scope in (fa.deferred_init, d.quiet):
        k.utils.set_random_seed(1)
        with scope():
            layer = k.layers.Dense(2, kernel_initializer=k.initializers.Constant(0.5))
            layer.build((None, 3))
        result = USES[use](layer.kernel)
        found.append(
            (None if result is None or use in {"copy", "checkpoint"} else np.asarray(result), np.asarray(layer.kernel))
        )
    assert np.array_equal(found[0][1], found[1][1])
    assert (found[0][0] is None) == (found[1][0] is None)
    if found[0][0] is not None:
        assert np.array_equal(found[0][0], found[1][0])


@pytest.mark.slow
@BOTH
def test_training_and_prediction(k):
    x, y = np.ones((4, 6, 4), "f4"), np.ones((4, 2), "f4")
    model, stock = deferred(k, build=recurrent), recurrent(k)
    if k is tf_keras:  # the order of the draws differs
        for ours, theirs in zip(model.variables, stock.variables, strict=True):
            theirs.assign(ours)
    for each in (model, stock):
        each.compile("adam", "mse")
    assert model.fit(x, y, verbose=0, shuffle=False).history == stock.fit(x, y, verbose=0, shuffle=False).history
    assert np.array_equal(model.predict(x, verbose=0), stock.predict(x, verbose=0))


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("suffix", ["weights.h5", "h5"])
def test_a_load_makes_no_initial_values(k, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"m.{suffix}"
    stock = d.fill(build(k), 3)
    with d.quiet():
        stock.save_weights(path) if suffix == "weights.h5" else stock.save(path)
    model = deferred(k)
    made = []
    monkeypatch.setattr("fastassign.targets.deferred.settle", made.append)
    report = fa.load_weights(model, path)
    assert made == []
    # Seeds are in no file.
    assert waiting(model) == len(model.variables) - report.assigned
    monkeypatch.undo()
    assert [np.asarray(w).tobytes() for w in model.weights] == [np.asarray(w).tobytes() for w in stock.weights]


def test_what_the_file_does_not_cover_gets_its_own(tmp_path):
    stock = d.fill(build(keras), 3)
    stock.save_weights(tmp_path / "m.weights.h5")
    model, twin = deferred(keras), build(keras)
    skipped = [model.layers[-1]]
    fa.load_weights(model, tmp_path / "m.weights.h5", objects_to_skip=skipped)
    twin.load_weights(tmp_path / "m.weights.h5", objects_to_skip=[twin.layers[-1]])
    assert waiting(model) > 0
    assert contents(model) == contents(twin)


def test_a_load_that_fails_leaves_nothing_behind(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(tmp_path / "m.weights.h5")
    model = deferred(keras)
    with pytest.raises(fa.Mismatch):
        fa.load_weights(model, tmp_path / "m.weights.h5")
    assert contents(model) == contents(build(keras))


@pytest.mark.parametrize("atomic", [False, True])
def test_other_ways_to_load(atomic, tmp_path):
    stock = d.fill(build(keras), 3)
    stock.save_weights(tmp_path / "m.weights.h5")
    expected = [np.asarray(w).tobytes() for w in stock.weights]
    model = deferred(keras)
    fa.load_weights(model, tmp_path / "m.weights.h5", atomic=atomic)
    assert [np.asarray(w).tobytes() for w in model.weights] == expected
    model = deferred(keras)
    with fa.Loader(model) as loader:
        loader.load(tmp_path / "m.weights.h5")
    assert [np.asarray(w).tobytes() for w in model.weights] == expected
    model = deferred(keras)
    model.load_weights(tmp_path / "m.weights.h5")
    assert [np.asarray(w).tobytes() for w in model.weights] == expected


def test_many_threads_find_one_value():
    model = deferred(keras)
    found = []
    threads = [threading.Thread(target=lambda: found.append(contents(model))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [contents(build(keras))] * 8


def test_what_is_made_as_ever():
    with fa.deferred_init():
        given = tf.Variable([1.0, 2.0])
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            mirrored = keras.layers.Dense(2)
            mirrored.build((None, 3))
        with tf.Graph().as_default():
            symbolic = tf.compat.v1.get_variable("v", (2,))
    assert not isinstance(given, DeferredVariable)
    assert not isinstance(mirrored.kernel._value, DeferredVariable)
    assert not isinstance(symbolic, DeferredVariable)
    after = keras.layers.Dense(2)
    after.build((None, 3))
    assert not isinstance(after.kernel._value, DeferredVariable)


def test_other_creators_keep_their_say():
    seen = []

    def creator(next_creator, **arguments):
        seen.append(arguments["name"])
        return next_creator(**arguments)

    with tf.variable_creator_scope(creator), fa.deferred_init():
        inside = keras.layers.Dense(2)
        inside.build((None, 3))
    assert seen
    assert np.isfinite(inside.kernel.numpy()).all()
