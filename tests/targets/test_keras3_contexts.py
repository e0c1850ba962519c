"""Where a Keras 3 model may be when it is loaded: a stateless scope, a traced function, a distribution strategy.

Rows and bugs are numbered as in docs/internals/keras.md, sections 9 and 3.
"""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastassign
from support.differential import (
    check,
    differences,
    fill,
    fresh,
    our_load,
    perturb,
    save,
    saved,
    snapshot,
    stock_load,
    twins,
    value_of,
)
from support.models import functional

pytestmark = pytest.mark.usefixtures("both_ways")


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


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_graph_mode(suffix, given, tmp_path):  # row 69, bug B12: stock says nothing and loads nothing
    path = saved(build, tmp_path / f"x{suffix}")
    wanted = [value_of(w).tobytes() for w in fill(fresh(build)).weights]
    with tf.Graph().as_default() as graph:
        model = build()
        session = tf.compat.v1.Session()
        variables = [w._value for w in model.weights]
        session.run([v.initializer for v in variables])
        before = [value.tobytes() for value in session.run(variables)]
        assert stock_load(model, path).error is None
        assert [value.tobytes() for value in session.run(variables)] == before
        counts = []
        for _ in range(2):
            with nullcontext() if given else session.as_default():
                report = fastassign.load_weights(model, path, session=session if given else None)
            counts.append(len(graph.get_operations()))
            assert report.routes == {"feed": len(wanted)}
            assert [value.tobytes() for value in session.run(variables)] == wanted
            session.run([v.initializer for v in variables])
        assert counts[0] == counts[1]


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_graph_mode_predictions(suffix, tmp_path):
    """Constants that layers made of their weights are ops here, and follow."""

    def made():
        layers = [keras.layers.Normalization(name="scale"), keras.layers.Dense(2, name="d")]
        return keras.Sequential([keras.Input((4,)), *layers], name="m")

    x = np.random.default_rng(0).normal(3, 2, (8, 4)).astype(np.float32)
    model = fresh(made)
    model.layers[0].adapt(x)
    path = save(model, tmp_path / f"x{suffix}")
    wanted = np.asarray(model(x))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        model = fresh(made)
        inputs = tf.compat.v1.placeholder(tf.float32, (None, 4))
        outputs = model(inputs)
        fastassign.load_weights(model, path)
        np.testing.assert_allclose(session.run(outputs, {inputs: x}), wanted, rtol=1e-5)


def test_graph_mode_without_a_session(tmp_path):
    path = saved(build, tmp_path / "x.weights.h5")
    with tf.Graph().as_default():
        model = build()
        with pytest.raises(fastassign.NoSession, match="no session was given") as caught:
            fastassign.load_weights(model, path)
    assert caught.value.variable == "first/kernel" and "session=" in caught.value.hint


def test_session_for_an_eager_model(tmp_path):
    path = saved(build, tmp_path / "x.weights.h5")
    model = fresh(build)
    before = snapshot(model)
    with tf.compat.v1.Session(graph=tf.Graph()) as session, pytest.raises(fastassign.Mismatch, match="are eager"):
        fastassign.load_weights(model, path, session=session)
    assert differences(snapshot(model), before) == []


@pytest.mark.parametrize("trainable", [False, True])
def test_trainable_flags_change_nothing(trainable, tmp_path):
    def made():
        model = build()
        model.trainable = trainable
        return model

    for suffix in (".h5", ".weights.h5"):
        check(made, saved(build, tmp_path / f"x{suffix}"))
