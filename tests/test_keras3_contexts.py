"""Where a Keras 3 model may be when it is loaded: a stateless scope, a traced function, a distribution strategy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from differential import (
    check,
    differences,
    fill,
    fresh,
    our_load,
    perturb,
    saved,
    snapshot,
    stock_load,
    twins,
    value_of,
)
from models import functional

import fastassign


def build():
    return functional(keras)


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_stateless_scope(suffix, tmp_path):  # row 74: values go into the scope, variables keep theirs
    path = saved(build, tmp_path / f"x{suffix}")
    found = []
    for load, model in zip((stock_load, our_load), twins(build), strict=True):
        perturb(model, 0.5)
        before = snapshot(model)
        with keras.StatelessScope() as scope:
            done = load(model, path)
        assert done.error is None
        assert differences(snapshot(model), before) == []
        found.append([np.asarray(scope.get_current_value(v)).tobytes() for v in model.weights])
    assert found[0] == found[1]


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_inside_a_traced_function(suffix, tmp_path):  # row 74: assignments become part of the graph
    path = saved(build, tmp_path / f"x{suffix}")
    found = []
    for load, model in zip((stock_load, our_load), twins(build), strict=True):
        perturb(model, 0.5)

        @tf.function(autograph=False)  # which would rewrite all of fastassign: seconds
        def step(load=load, model=model):
            assert load(model, path).error is None
            return tf.constant(1)

        step()
        found.append([value_of(v).tobytes() for v in model.weights])
        perturb(model, 0.25)
        step()  # not traced again
        found.append([value_of(v).tobytes() for v in model.weights])
    assert found[0] == found[1] == found[2] == found[3]


def two_devices():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_mirrored_variables(suffix, inside, tmp_path):  # row 70
    strategy = two_devices()
    path = saved(build, tmp_path / f"x{suffix}")
    wanted = [value_of(w).tobytes() for w in fill(fresh(build)).weights]
    with strategy.scope():  # where names can't be counted anew
        model = build()
    for load in (stock_load, our_load):
        perturb(model, 0.5)
        if inside:
            with strategy.scope():
                assert load(model, path).error is None
        else:
            assert load(model, path).error is None
        for replica in range(2):
            assert [w._value.values[replica].numpy().tobytes() for w in model.weights] == wanted


def test_training_goes_on_after_a_load(tmp_path):
    """Variables that share memory with anything would show it here."""
    path = saved(build, tmp_path / "x.weights.h5")
    x, y = np.ones((4, 4), np.float32), [np.ones((4, 3), np.float32), np.ones((4, 2), np.float32)]
    results = []
    for load, model in zip((stock_load, our_load), twins(build), strict=True):
        model.compile("adam", ["mse", "mse"], run_eagerly=True)
        load(model, path)
        keras.utils.set_random_seed(1)
        model.get_layer("drop").rate = 0.0
        model.train_on_batch(x, y)
        results.append([value_of(v) for v in model.weights])
        load(model, path)
        results.append([value_of(v) for v in model.weights])
    assert all(np.array_equal(a, b) for a, b in zip(results[0], results[2], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(results[1], results[3], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(results[0], results[1], strict=True))


def test_graph_mode_is_refused(tmp_path):  # row 69, bug B12: stock says nothing and loads nothing
    path = saved(build, tmp_path / "x.weights.h5")
    with tf.Graph().as_default():
        model = build()
        assert stock_load(model, path).error is None
        with pytest.raises(NotImplementedError, match="graph mode"):
            fastassign.load_weights(model, path)


def test_session_is_refused(tmp_path):
    path = saved(build, tmp_path / "x.weights.h5")
    with pytest.raises(NotImplementedError, match="session"):
        fastassign.load_weights(fresh(build), path, session=object())


@pytest.mark.parametrize("trainable", [False, True])
def test_trainable_flags_change_nothing(trainable, tmp_path):
    def made():
        model = build()
        model.trainable = trainable
        return model

    for suffix in (".h5", ".weights.h5"):
        check(made, saved(build, tmp_path / f"x{suffix}"))
