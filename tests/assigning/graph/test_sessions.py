"""Which session: the one given, the default one, Keras' own; and what is refused."""

import gc
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras.src import backend as K

import fastassign as fa
from fastassign.errors import Unsupported
from support import graph_modes
from support.graph_modes import variable_of
from support.graphs import BOTH, count_ops, holds, read, v1, value


def dense(graph):
    """A tf_keras model in a graph, and values for it."""
    with graph.as_default():
        model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3, name="d")], name="m")
    return model, [np.arange(12, dtype=np.float32).reshape(4, 3) + 1, np.array([7, 8, 9], np.float32)]


@pytest.mark.parametrize("way", ["given", "default", "as_default", "keras"])
def test_session_is_found(way, graph):
    model, values = dense(graph)
    pairs = list(zip(model.weights, values, strict=True))
    session = K.get_session() if way == "keras" else v1.Session()
    if way == "default":
        with session:
            fa.assign(pairs)
            assert holds(session, model, values)
        return
    with session.as_default() if way == "as_default" else nullcontext():
        fa.assign(pairs, session if way == "given" else None)
    assert holds(session, model, values)


def test_keras_session_is_found_outside_of_the_graph():
    graph = tf.Graph()
    model, values = dense(graph)
    fa.assign(zip(model.weights, values, strict=True))
    with graph.as_default():
        assert holds(K.get_session(), model, values)


def test_keras_does_not_initialise_again_what_was_assigned(graph):
    model, values = dense(graph)
    fa.assign(zip(model.weights, values, strict=True))
    count = count_ops(graph)
    assert holds(K.get_session(), model, values)
    assert K.batch_get_value(model.weights)[1].tolist() == [7, 8, 9]
    assert count_ops(graph) == count + len(model.weights)  # the values that this test reads


@BOTH
@pytest.mark.parametrize("inside", [True, False])
def test_without_a_session(inside, use_resource):
    graph = tf.Graph()
    with graph.as_default():
        variable = variable_of("v", (3,), "float32", use_resource)
    count = count_ops(graph)
    where = graph.as_default() if inside else nullcontext()
    with where, pytest.raises(fa.NoSession, match="no session was given") as caught:
        fa.assign([(variable, np.ones(3))])
    assert caught.value.variable == "v:0" and "session=" in caught.value.hint
    assert isinstance(caught.value, ValueError)
    assert count_ops(graph) == count


def test_a_model_without_a_session(files, graph):
    variable = variable_of("first/kernel", (4, 5), "float32", use_resource=True)
    with pytest.raises(fa.NoSession):
        fa.load_weights([variable], files / "functional.h5")


def test_session_of_another_graph(graph):
    variable = variable_of("v", (3,), "float32", use_resource=True)
    count = count_ops(graph)
    with pytest.raises(fa.Mismatch, match="another graph"), v1.Session(graph=tf.Graph()) as other:
        fa.assign([(variable, np.ones(3))], other)
    assert count_ops(graph) == count


def test_default_session_of_another_graph(graph):
    variable = variable_of("v", (3,), "float32", use_resource=True)
    with v1.Session(graph=tf.Graph()), pytest.raises(fa.NoSession, match="another graph"):
        fa.assign([(variable, np.ones(3))])


def test_session_for_eager_variables(eager, files, graph, session):
    with pytest.raises(fa.Mismatch, match="are eager"):
        fa.assign([(eager, np.ones((4, 5)))], session)
    with pytest.raises(fa.Mismatch, match="are eager"):
        fa.load_weights({"first/kernel": eager}, files / "functional.h5", session=session)
    assert not read(eager).any()


def test_variables_of_two_graphs(session):
    one = variable_of("v", (3,), "float32", use_resource=True)
    with tf.Graph().as_default():
        two = variable_of("v", (3,), "float32", use_resource=True)
    session.run(one.initializer)
    for given in (None, session):
        with pytest.raises(fa.Mismatch, match="different graphs"):
            fa.assign([(one, np.ones(3)), (two, np.ones(3))], given)
    assert not value(session, one).any()


def test_variables_of_which_some_are_eager(eager, session):
    one = variable_of("v", (3,), "float32", use_resource=True)
    session.run(one.initializer)
    for given in (None, session):
        with pytest.raises(fa.Mismatch, match="some are eager"):
            fa.assign([(one, np.ones(3)), (eager, np.ones((4, 5)))], given)
    assert not value(session, one).any() and not read(eager).any()


@pytest.mark.parametrize("with_session", [False, True])
def test_eager_variables_inside_of_a_graph(with_session, eager, files, graph):
    count = count_ops(graph)
    with v1.Session() if with_session else nullcontext():
        fa.assign([(eager, np.arange(20).reshape(4, 5))])
        assert (read(eager).ravel() == np.arange(20)).all()
        fa.load_weights({"first/kernel": eager}, files / "functional.h5")
    assert graph_modes.same([read(eager)], graph_modes.saved(files, "functional")[:1])
    assert count_ops(graph) == count


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("kind", [v1.Session, v1.train.MonitoredSession])
def test_closed_session(kind, before, graph):
    variable = variable_of("v", (3,), "float32", use_resource=True)
    with v1.Session() as first:  # its graph is final afterwards
        fa.assign([(variable, np.ones(3))], first)
    session = kind()
    for _ in range(before):
        fa.assign([(variable, np.ones(3))], session)
    session.close()
    with pytest.raises(fa.NoSession, match="closed"):
        fa.assign([(variable, np.ones(3))], session)


def test_each_session_has_its_own_values(graph):
    model, values = dense(graph)
    sessions = [v1.Session(), v1.Session(), K.get_session()]
    for factor, session in enumerate(sessions):
        pairs = zip(model.weights, [factor * array for array in values], strict=True)
        fa.assign(pairs, session if factor < 2 else None)
    for factor, session in enumerate(sessions):
        assert holds(session, model, [factor * array for array in values])


def test_each_session_has_its_own_model(files, graph):
    model = graph_modes.build("small")
    one, two = v1.Session(), v1.Session()
    fa.load_weights(model, files / "small.h5", session=one)
    count = count_ops(graph)
    fa.load_weights(model, files / "small.weights.h5", session=two)
    fa.assign([(weight, np.zeros(weight.shape)) for weight in model.weights], one)
    assert count_ops(graph) == count
    assert holds(two, model, graph_modes.saved(files, "small"))
    assert not any(array.any() for array in one.run([weight.value() for weight in model.weights]))


def test_session_is_not_kept_alive(graph):
    variable = variable_of("v", (3,), "float32", use_resource=True)
    session = v1.Session()
    fa.assign([(variable, np.ones(3))], session)
    alive = weakref.ref(session)
    session.close()
    del session
    gc.collect()
    assert alive() is None


def test_interactive_session(graph):
    variable = variable_of("v", (3,), "float32", use_resource=True)
    session = v1.InteractiveSession()
    try:
        fa.assign([(variable, [1, 2, 3])])
        assert variable.eval().tolist() == [1, 2, 3]
    finally:
        session.close()


@pytest.mark.parametrize("kind", ["MonitoredSession", "SingularMonitoredSession"])
def test_monitored_session(kind, graph):
    made, missing = (variable_of(name, (3,), "float32", use_resource=True) for name in ("made", "missing"))
    with v1.Session() as first:
        fa.assign([(made, np.ones(3))], first)
    with getattr(v1.train, kind)() as session:
        fa.assign([(made, [1, 2, 3])], session)
        assert session.run(made).tolist() == [1, 2, 3]
        with pytest.raises(fa.Mismatch, match="finalized, but lacks the assign ops of 1 of its variables") as caught:
            fa.assign([(made, np.zeros(3)), (missing, np.zeros(3))], session)
        assert caught.value.variable == "missing:0" and "before graph.finalize()" in caught.value.hint
        assert session.run(made).tolist() == [1, 2, 3]


def test_finalized_graph(files, graph, session):
    model = graph_modes.build("small")
    fa.load_weights(model, files / "small.h5")
    weights = [weight.value() for weight in model.weights]
    graph.finalize()
    for suffix in (".h5", ".weights.h5"):
        fa.assign([(weight, np.zeros(weight.shape)) for weight in model.weights])
        fa.load_weights(model, files / f"small{suffix}")
        assert graph_modes.same(session.run(weights), graph_modes.saved(files, "small"))


def test_variables_of_a_partitioner_are_refused(graph, session):
    variable = v1.get_variable("p", (4, 3), partitioner=v1.fixed_size_partitioner(2))
    session.run(v1.global_variables_initializer())
    before = session.run(variable.as_tensor())
    count = count_ops(graph)
    for given in (None, session):
        with pytest.raises(Unsupported, match="several variables"):
            fa.assign([(variable, np.ones((4, 3)))], given)
    assert count_ops(graph) == count
    assert session.run(variable.as_tensor()).tobytes() == before.tobytes()
    # What it is made of can be assigned.
    fa.assign(zip(variable, [np.ones((2, 3)), np.zeros((2, 3))], strict=True))
    assert session.run(variable.as_tensor()).tolist() == [[1] * 3] * 2 + [[0] * 3] * 2


def test_variables_of_a_strategy_are_refused(graph, session):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        variable = v1.get_variable("v", (3,))
    with pytest.raises(Unsupported, match="several variables"):
        fa.assign([(variable, np.ones(3))])
