"""Variables of TensorFlow 1 graphs: sessions, the ops that feed them, the memory that they are fed with."""

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from contextlib import nullcontext

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tensorflow.python.eager.context import eager_mode
from tf_keras.src import backend as K

import fastassign as fa
from fastassign.assigning import graph as graph_module
from fastassign.errors import Unsupported
from fastassign.runtime import process_runtime
from fastassign.streaming import buffers
from fastassign.streaming.buffers import ArenaPool, is_aligned
from support import attacks, differential, faults, graph_modes, models
from support.graph_modes import variable_of
from support.options import load_options
from support.running import with_source

v1 = tf.compat.v1

BOTH = pytest.mark.parametrize("use_resource", [True, False], ids=["resource", "ref"])


@pytest.fixture
def eager():
    """An eager variable; made before the graph, which otherwise would have it."""
    return tf.Variable(np.zeros((4, 5), np.float32))


@pytest.fixture
def graph():
    """A graph to build in."""
    with tf.Graph().as_default() as made:
        yield made


@pytest.fixture
def session(graph):
    """The default session of that graph; with two devices."""
    with v1.Session(config=v1.ConfigProto(device_count={"CPU": 2})) as made:
        yield made


def count_ops(graph):
    return len(graph.get_operations())


def value(session, variable):
    return session.run(variable.value())


def dense(graph):
    """A tf_keras model in a graph, and values for it."""
    with graph.as_default():
        model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3, name="d")], name="m")
    return model, [np.arange(12, dtype=np.float32).reshape(4, 3) + 1, np.array([7, 8, 9], np.float32)]


def holds(session, model, values):
    """Whether the variables of a model, or these, have these values."""
    variables = getattr(model, "weights", model)
    return graph_modes.same(session.run([variable.value() for variable in variables]), values)


# The four modes.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modes")
    graph_modes.write_files(folder)
    return folder


@pytest.fixture(scope="module")
def outcomes(files):
    """Run the checks of each mode of a whole process in a process of its own, all at once; return what came of them."""
    environment = {
        **os.environ,
        "FASTASSIGN_CACHE": str(files / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    program = [sys.executable, graph_modes.__file__]
    logs = {mode: (files / f"{mode}.log").open("w+") for mode in graph_modes.MODES[1:]}
    started = {}
    for mode, log in logs.items():
        folder = files / mode
        folder.mkdir()
        for file in files.iterdir():
            if file.suffix in {".h5", ".npz"}:
                os.link(file, folder / file.name)
        started[mode] = subprocess.Popen([*program, mode, folder], env=environment, stdout=log, stderr=log)
    ended = {}

    def outcome(mode):
        if mode not in ended:
            code = started[mode].wait(300)
            logs[mode].seek(0)
            assert code == 0, logs[mode].read()
            ended[mode] = json.loads((files / mode / f"{mode}.json").read_text(encoding="utf-8"))
        return ended[mode]

    yield outcome
    for mode, process in started.items():
        process.kill()
        process.wait()
        logs[mode].close()


@pytest.mark.parametrize("check", graph_modes.CHECKS)
@pytest.mark.parametrize("mode", graph_modes.MODES)
def test_in_every_mode(mode, check, outcomes, files):
    if mode == "graph":
        graph_modes.run(check, mode, files)
    else:
        failure = outcomes(mode)[check]
        assert failure is None, f"in a process of its own:\n{failure}"


# Which session.


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


def read(eager):
    """Return the value of an eager variable, inside of a graph."""
    with eager_mode():
        return eager.numpy()


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


# The ops.


def made_by(graph, session, variable):
    """The ops that an assignment made."""
    count = count_ops(graph)
    fa.assign([(variable, [1, 2, 3])], session)
    return graph.get_operations()[count:]


@BOTH
def test_ops_inherit_nothing_of_the_scopes_around(use_resource, graph, session):
    variable, other = (variable_of(name, (3,), "float32", use_resource) for name in ("v", "o"))
    must_not_run = v1.Assert(tf.constant(False), ["the scope's dependency ran"])
    with (
        tf.name_scope("name"),
        v1.variable_scope("scope"),
        tf.device("/CPU:1"),
        tf.control_dependencies([must_not_run]),
        v1.colocate_with(other.op),
    ):
        made = made_by(graph, session, variable)
    assert len(made) == 2
    for op in made:
        assert op.name.startswith("fastassign") and op.device == "" and op.control_inputs == []
        assert f"loc:@{other.op.name}".encode() not in op.colocation_groups()
    assert value(session, variable).tolist() == [1, 2, 3]


def test_ops_stand_outside_of_a_branch(graph, session):
    variable = variable_of("v", (3,), "float32", use_resource=True)
    made = []
    was_on = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        tf.cond(v1.placeholder(tf.bool, ()), lambda: made.extend(made_by(graph, session, variable)) or 1, lambda: 2)
    finally:
        if was_on:
            v1.enable_control_flow_v2()
    assert [op._get_control_flow_context() for op in made] == [None, None]
    assert value(session, variable).tolist() == [1, 2, 3]


def test_ops_are_made_in_the_graph_of_the_variables(graph, session):
    variable = variable_of("v", (3,), "float32", use_resource=True)
    with tf.Graph().as_default() as other:
        made = made_by(graph, session, variable)
    assert len(made) == 2 and count_ops(other) == 0
    assert value(session, variable).tolist() == [1, 2, 3]


def test_many_variables_are_fed_at_once(graph, session, monkeypatch):
    variables = [variable_of(f"v{i}", (i % 5,), "float32", use_resource=i % 3 > 0) for i in range(60)]
    feeds, count, feed = [], count_ops(graph), graph_module.feed

    def spy(session, targets, values):
        feeds.append(len(targets))
        feed(session, targets, values)

    monkeypatch.setattr(graph_module, "feed", spy)
    report = fa.assign([(variable, np.full(i % 5, i)) for i, variable in enumerate(variables)])
    assert feeds == [60] and report.routes == {"feed": 60}
    assert count_ops(graph) == count + 120
    found = session.run([variable.value() for variable in variables])
    assert all(array.tolist() == [i] * (i % 5) for i, array in enumerate(found))


def test_only_so_many_sets_of_variables_are_kept(graph, session, monkeypatch):
    monkeypatch.setattr(graph_module, "_KEPT", 2)
    variables = [variable_of(f"v{i}", (), "float32", use_resource=True) for i in range(4)]
    for round_ in (1, 2):
        for i, variable in enumerate(variables):
            fa.assign([(variable, round_ * i)])
            assert len(session._fastassign_feeds) <= 2
        assert session.run(variables) == [round_ * i for i in range(4)]


@BOTH
def test_keras_still_refuses_wrong_shapes_after_us(use_resource, graph, session):
    """Its ``set_value`` takes our op, and relies on it to look at the shape."""
    variable = variable_of("v", (3,), "float32", use_resource)
    fa.assign([(variable, [1, 2, 3])])
    with pytest.raises(tf.errors.InvalidArgumentError):
        K.set_value(variable, np.zeros(5))
    assert value(session, variable).tolist() == [1, 2, 3]


@BOTH
def test_ops_of_keras_are_used(use_resource, graph, session):
    variable = variable_of("v", (3,), "float32", use_resource)
    K.set_value(variable, np.zeros(3))
    count = count_ops(graph)
    for _ in range(2):
        fa.assign([(variable, [1, 2, 3])])
    assert count_ops(graph) == count
    assert value(session, variable).tolist() == [1, 2, 3]


def test_variables_on_another_device(graph, session):
    with tf.device("/CPU:1"):
        variable = variable_of("v", (3,), "float32", use_resource=True)
    fa.assign([(variable, [1, 2, 3])])
    assert value(session, variable).tolist() == [1, 2, 3]


# Values before anything runs.


@BOTH
def test_wrong_shape_for_a_variable_that_was_never_initialised(use_resource, graph, session):
    variable = variable_of("v", (3,), "float32", use_resource)
    count = count_ops(graph)
    with pytest.raises(fa.Mismatch, match=r"\(3,\), and the assigned value shape \(5,\)"):
        fa.assign([(variable, np.ones(5))])
    assert count_ops(graph) == count
    assert list(session.run(v1.report_uninitialized_variables([variable]))) == [b"v"]


@BOTH
def test_right_shape_initialises(use_resource, graph, session):
    variable = variable_of("v", (3,), "float32", use_resource)
    fa.assign([(variable, [1, 2, 3])])
    assert list(session.run(v1.report_uninitialized_variables([variable]))) == []
    assert value(session, variable).tolist() == [1, 2, 3]


def test_nothing_is_assigned_where_one_does_not_fit(graph, session):
    variables = [variable_of(f"v{i}", (3,), "float32", use_resource=i > 0) for i in range(3)]
    session.run(v1.global_variables_initializer())
    with pytest.raises(fa.Mismatch):
        fa.assign([(variables[0], np.ones(3)), (variables[1], np.ones(3)), (variables[2], np.ones(4))])
    assert not np.any(session.run([variable.value() for variable in variables]))


def test_too_large_for_the_budget(files, graph, session):
    model = graph_modes.build("small")
    count = count_ops(graph)
    with pytest.raises(fa.Budget):
        fa.load_weights(model, files / "small.h5", options=fa.LoadOptions(max_staging_bytes=64))
    assert count_ops(graph) == count


def open_variable(name, shape, declared, use_resource):
    """A variable whose shape is open."""
    initial = v1.placeholder_with_default(np.zeros(shape, np.float32), declared)
    return v1.Variable(initial, validate_shape=False, use_resource=use_resource, name=name)


@BOTH
def test_open_shapes(use_resource, graph, session):
    rows, anything = (
        open_variable(name, (2, 3), shape, use_resource) for name, shape in (("r", (None, 3)), ("a", None))
    )
    count = None
    for shape, other in (((4, 3), (5,)), ((1, 3), ()), ((0, 3), (2, 2, 2))):
        one, two = np.random.default_rng(0).normal(size=shape), np.full(other, 3)
        fa.assign([(rows, one), (anything, two)])
        assert value(session, rows).tobytes() == one.astype(np.float32).tobytes()
        assert value(session, anything).tolist() == two.tolist()
        # Each `value` of a test reads by an op of its own.
        assert count is None or count_ops(graph) - count <= 2 * use_resource
        count = count_ops(graph)


def test_open_shapes_that_do_not_fit(graph, session):
    rows = open_variable("r", (2, 3), (None, 3), use_resource=True)
    session.run(rows.initializer)
    for shape in ((3, 4), (3,)):
        with pytest.raises(ValueError, match="Shape mismatch") as stock:
            rows.assign(np.zeros(shape, np.float32))
        with pytest.raises(fa.Mismatch) as ours:
            fa.assign([(rows, np.zeros(shape))])
        assert str(ours.value) == str(stock.value)
    assert value(session, rows).shape == (2, 3)


def test_open_shapes_after_keras_made_an_op_for_another_rank(graph, session):
    # Of the old kind Keras itself changes none.
    variable = open_variable("a", (2, 3), None, use_resource=True)
    K.set_value(variable, np.zeros(3))
    fa.assign([(variable, [[1, 2], [3, 4]])])
    assert value(session, variable).tolist() == [[1, 2], [3, 4]]


@BOTH
def test_keras_may_change_open_shapes_after_us(use_resource, graph, session):
    rows = open_variable("r", (2, 3), (None, 3), use_resource)
    fa.assign([(rows, np.ones((4, 3)))])
    count = count_ops(graph)
    K.set_value(rows, np.zeros((7, 3)))
    assert count_ops(graph) == count
    assert value(session, rows).shape == (7, 3)


# Threads.


def test_another_thread(files, graph, session):
    model = graph_modes.build("small")
    failures = []

    def load():
        try:
            fa.load_weights(model, files / "small.h5", session=session)
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            failures.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join(60)
    assert failures == []
    assert holds(session, model, graph_modes.saved(files, "small"))


def test_two_sessions_of_one_graph_at_once(tmp_path, graph):
    model = models.chain(tf_keras, *range(3, 23))
    rng = np.random.default_rng(0)
    contents = [[rng.normal(size=weight.shape).astype(np.float32) for weight in model.weights] for _ in range(2)]
    paths = [tmp_path / f"{i}.h5" for i in range(2)]
    sessions = [v1.Session(graph=graph) for _ in range(2)]
    with v1.Session() as first:
        for values, path in zip(contents, paths, strict=True):
            first.run([weight.initializer for weight in model.weights])
            # Not by us: the threads have to make the ops.
            with h5py.File(path, "w") as file:
                for weight, array in zip(model.weights, values, strict=True):
                    file[weight.name] = array
    count, barrier, failures = count_ops(graph), threading.Barrier(2), []

    def load(i):
        try:
            barrier.wait(10)
            for _ in range(8):
                fa.load_weights(list(model.weights), paths[i], session=sessions[i])
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            failures.append(error)

    threads = [threading.Thread(target=load, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert count_ops(graph) == count + 2 * len(model.weights)
    for session, values in zip(sessions, contents, strict=True):
        assert holds(session, model, values)


def test_loader_in_the_background(files, graph, session):
    model = graph_modes.build("small")
    with fa.Loader(model, session=session) as loader:
        for suffix in (".h5", ".weights.h5"):
            fa.assign([(weight, np.zeros(weight.shape)) for weight in model.weights])
            loader.load_async(files / f"small{suffix}").result(60)
            assert holds(session, model, graph_modes.saved(files, "small"))


def test_readers_beside_assignments(graph, session):
    """Each sees one value whole, and what it has read stays as it is."""
    variable = variable_of("v", (20_000,), "float32", use_resource=True)
    fa.assign([(variable, np.zeros(20_000))])
    read, stop, failures = variable.value(), threading.Event(), []

    def look():
        kept = []
        while not stop.is_set():
            kept = [*kept[-5:], session.run(read)]
            if any((array != array[0]).any() for array in kept):
                failures.append("torn")

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(60):
        fa.assign([(variable, np.full(20_000, i))])
    stop.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert (value(session, variable) == 59).all()


# Tensors of files.


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Files with tensors stored in every way, and what they are as single precision (or as they are)."""
    rng = np.random.default_rng(0)
    plain, gzip = rng.normal(size=(4, 5)), rng.normal(size=(40, 30)).astype(np.float32)
    wanted = {
        "single": plain.astype(np.float32),
        "double": plain.astype(np.float32),
        "big_endian": plain.astype(np.float32),
        "gzip": gzip,
        "gzip_double": gzip,
        "scalar": np.float32(0.1),
        "empty": np.zeros((0, 3), np.float32),
        "bfloat16": plain.astype(tf.bfloat16.as_numpy_dtype),
        "flags": plain > 0,
    }
    paths = [tmp_path_factory.mktemp("stored") / f"{i}.h5" for i in range(2)]
    for path in paths:
        with h5py.File(path, "w") as file:
            for name in ("single", "scalar", "empty", "flags"):
                file[name] = wanted[name]
            file["double"] = plain
            file["big_endian"] = plain.astype(">f4")
            for name, dtype in (("gzip", "f4"), ("gzip_double", "f8")):
                file.create_dataset(name, data=gzip.astype(dtype), chunks=(10, 30), compression="gzip")
            file["bfloat16"] = wanted["bfloat16"].view("V2")
    return paths, wanted


@BOTH
@pytest.mark.parametrize("threads", [1, 3])
def test_tensors_stored_in_every_way(threads, use_resource, stored, graph, session):
    paths, wanted = stored
    made = {
        name: variable_of(name, array.shape, tf.as_dtype(array.dtype), use_resource) for name, array in wanted.items()
    }
    report = fa.load_weights(made, paths[0], session=session, options=fa.LoadOptions(threads=threads))
    assert report.routes == {"feed": len(wanted)}
    assert len(report.cast) == 3  # from double precision twice, and from another byte order
    found = session.run([variable.value() for variable in made.values()])
    assert graph_modes.same(found, [np.asarray(array) for array in wanted.values()])


@BOTH
def test_assign_arrays_and_tensors_of_files(use_resource, stored, graph, session):
    paths, wanted = stored
    one, two = map(fa.inspect, paths)
    values = {"a": one["single"], "b": two["double"], "c": wanted["single"] + 1, "d": two["gzip"], "e": one["empty"]}
    arrays = [wanted["single"], wanted["double"], wanted["single"] + 1, wanted["gzip"], wanted["empty"]]
    made = [variable_of(name, array.shape, "float32", use_resource) for name, array in zip(values, arrays, strict=True)]
    report = fa.assign(zip(made, values.values(), strict=True), session)
    assert report.assigned == 5 and report.routes == {"feed": 5}
    assert graph_modes.same(session.run([variable.value() for variable in made]), arrays)


def test_more_than_is_fed_at_once(graph, session, tmp_path):
    made = [variable_of(f"v{i}", (4 << 20,), "float32", use_resource=True) for i in range(4)]
    arrays = [np.full(4 << 20, i, np.float32) for i in range(4)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for i in range(4):
            file[f"v{i}"] = arrays[i] + 1
    plan = fa.plan(made, tmp_path / "x.h5", session=session)
    assert len(plan.schedule.batches) >= 2
    plan.execute()
    assert session.run([tf.reduce_min(each) for each in made]) == [1, 2, 3, 4]
    fa.assign(zip(made, arrays, strict=True))
    assert session.run([tf.reduce_max(each) for each in made]) == [0, 1, 2, 3]
    fa.release_buffers()


# The memory that variables are fed with.

SIZES = pytest.mark.parametrize("size", [5, 1000, 300_000])


@BOTH
@SIZES
def test_arrays_may_change_after_the_call(size, use_resource, graph, session):
    variable = variable_of("v", (size,), "float32", use_resource)
    # Aligned as TensorFlow wants it: it would keep the array itself.
    array = buffers.aligned_array(4 * size).view(np.float32)
    array[:] = 1
    fa.assign([(variable, array)])
    array[:] = 2
    assert (value(session, variable) == 1).all()


@BOTH
@SIZES
def test_a_value_that_was_read_does_not_change(size, use_resource, graph, session):
    variable = variable_of("v", (size,), "float32", use_resource)
    fa.assign([(variable, np.full(size, 1))])
    kept = value(session, variable)
    for i in range(2, 6):
        fa.assign([(variable, np.full(size, i))])
    assert (kept == 1).all()
    assert (value(session, variable) == 5).all()


@SIZES
def test_a_value_that_another_variable_took_does_not_change(size, graph, session):
    """TensorFlow does not copy it: both variables hold the memory that the first was fed with."""
    variable, heir = (variable_of(name, (size,), "float32", use_resource=True) for name in ("v", "h"))
    inherit = heir.assign(variable.value()).op
    fa.assign([(variable, np.full(size, 1))])
    session.run(inherit)
    for i in range(2, 6):
        fa.assign([(variable, np.full(size, i))])
    assert (value(session, heir) == 1).all()


def test_values_that_training_changed_in_place(graph, session):
    """What a variable holds may be updated where it stands: then it is not given to the next either."""
    one, two = (variable_of(name, (1000,), "float32", use_resource=True) for name in ("a", "b"))
    add = one.assign_add(np.ones(1000, np.float32)).op
    for i in range(4):
        fa.assign([(one, np.full(1000, i))])
        session.run(add)
        session.run(add)
        fa.assign([(two, np.full(1000, -1))])
        assert (value(session, one) == i + 2).all()
        assert (value(session, two) == -1).all()


def test_memory_comes_back_when_variables_let_go(eager, graph):
    elements, nbytes = 5003, 20_032  # of this size there are no others

    def idle():
        with eager_mode():
            eager.assign_add(np.ones((4, 5), np.float32))  # TensorFlow lets go of arrays when it sees new ones
        return len(ARENAS._idle.get(nbytes, ()))

    session = v1.Session()
    variable = variable_of("v", (elements,), "float32", use_resource=True)
    fa.assign([(variable, np.ones(elements))], session)
    assert idle() == 0
    fa.assign([(variable, np.ones(elements))], session)
    assert idle() == 1
    before = ARENAS.idle_bytes
    session.close()
    del session
    gc.collect()
    assert idle() == 2
    assert ARENAS.idle_bytes >= before + nbytes


def test_memory_is_used_again(graph, session, monkeypatch):
    made = []
    aligned_array = buffers.aligned_array
    monkeypatch.setattr(buffers, "aligned_array", lambda nbytes: made.append(nbytes) or aligned_array(nbytes))
    variable = variable_of("v", (12_345,), "float32", use_resource=True)
    for i in range(10):
        fa.assign([(variable, np.full(12_345, i))])
        assert (value(session, variable) == i).all()
    assert 1 <= len(made) <= 3


def test_release_buffers(graph, session):
    variable = variable_of("v", (1000,), "float32", use_resource=True)
    for i in range(4):
        fa.assign([(variable, np.full(1000, i))])
    assert ARENAS.idle_bytes > 0
    fa.release_buffers()
    assert ARENAS.idle_bytes == 0 and not ARENAS._idle
    assert (value(session, variable) == 3).all()
    fa.assign([(variable, np.full(1000, 4))])
    assert (value(session, variable) == 4).all()


# The pool by itself.


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 1000, 1 << 20])
def test_pool_memory_is_aligned_and_writable(nbytes):
    pool = ArenaPool()
    for _ in range(3):
        array = pool.lease(nbytes)
        assert array.shape == (nbytes,) and array.dtype == np.uint8
        assert is_aligned(array) or not nbytes
        array[:] = 7


def test_pool_gives_memory_again():
    pool = ArenaPool()
    array = pool.lease(1000)
    where = address(array)
    assert pool.idle_bytes == 0
    del array
    assert pool.idle_bytes == 1000
    array = pool.lease(1000)
    assert address(array) == where and pool.idle_bytes == 0


@pytest.mark.parametrize(
    "view", [lambda a: a[10:], lambda a: a.view(np.float32), lambda a: np.ndarray((5,), "f8", a, 64), memoryview,
             lambda a: a[:0], lambda a: a.reshape(10, -1).T]
)  # fmt: skip
def test_views_keep_pool_memory(view):
    pool = ArenaPool()
    array = pool.lease(1000)
    kept = view(array)
    del array
    assert pool.idle_bytes == 0
    assert address(pool.lease(1000)) != np.asarray(kept).__array_interface__["data"][0] // 64 * 64
    pool.release()
    del kept
    assert pool.idle_bytes == 1000


def test_pool_keeps_no_more_than_it_may():
    pool = ArenaPool(keep_bytes=2500)
    lent = [pool.lease(1000) for _ in range(5)]
    lent.clear()
    assert pool.idle_bytes == 2000
    assert sum(map(len, pool._idle.values())) == 2


def test_pool_keeps_nothing_where_it_may_not():
    pool = ArenaPool(keep_bytes=0)
    pool.lease(1000)
    assert pool.idle_bytes == 0 and not any(pool._idle.values())


def test_pool_takes_back_what_was_lent_before_a_release():
    pool = ArenaPool()
    array, idle = pool.lease(1000), pool.lease(500)
    del idle
    pool.release()
    assert pool.idle_bytes == 0
    array[:] = 1
    del array
    assert pool.idle_bytes == 1000


def test_pool_takes_back_by_the_collector():
    """In whatever thread and at whatever moment that runs."""
    pool = ArenaPool()

    class Cycle:
        pass

    for _ in range(3):
        holder = Cycle()
        holder.itself, holder.array = holder, pool.lease(1000)
        del holder
        gc.collect()
        assert pool.idle_bytes == 1000


def test_pool_outlives_its_name():
    array = ArenaPool().lease(100)
    gc.collect()
    array[:] = 1
    assert array.sum() == 100


def test_pool_in_many_threads():
    pool, failures, barrier = ArenaPool(keep_bytes=20_000), [], threading.Barrier(6)

    def work(mark):
        rng = np.random.default_rng(mark)
        held = []
        barrier.wait(10)
        for _ in range(600):
            array = pool.lease(int(rng.choice([64, 512, 1000])))
            array[:] = mark
            held.append(array[: rng.integers(1, 64)] if rng.random() < 0.3 else array)
            if len(held) > 4:
                held.pop(rng.integers(5))
            if not all((array == mark).all() for array in held):
                failures.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert pool.idle_bytes == sum(nbytes * len(blocks) for nbytes, blocks in pool._idle.items()) <= 20_000


class PoolMachine(RuleBasedStateMachine):
    """Leases, views and returns in any order; every byte has one owner."""

    def __init__(self):
        super().__init__()
        self.pool = ArenaPool(keep_bytes=3000)
        self.lent = []
        self.mark = 0

    @rule(nbytes=st.sampled_from([0, 64, 100, 1000]), part=st.booleans())
    def lease(self, nbytes, part):
        array = self.pool.lease(nbytes)
        self.mark = self.mark % 255 + 1
        array[:] = self.mark
        self.lent.append((array[nbytes // 2 :] if part else array, self.mark))

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def drop(self, data):
        self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))

    @rule()
    def release(self):
        self.pool.release()
        assert self.pool.idle_bytes == 0

    @invariant()
    def each_byte_has_one_owner(self):
        assert all((array == mark).all() for array, mark in self.lent)

    @invariant()
    def the_count_is_right(self):
        idle = sum(nbytes * len(blocks) for nbytes, blocks in self.pool._idle.items())
        assert self.pool.idle_bytes == idle <= self.pool.keep_bytes


PoolMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestPool = PoolMachine.TestCase


# What can fail while a file is read.


@pytest.fixture
def case(tmp_path, graph, session):
    """A file, variables with other values, those, and what is in the file; and that it can be loaded afterwards."""
    rng = np.random.default_rng(0)
    shapes = [(20, 32), (32,), (32, 48), (48,), (48, 32), (32,), (32, 16), (16,), (16, 7), (7,)]
    new, old = ([rng.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(2))
    variables = [variable_of(f"v{i}", shape, "float32", use_resource=i % 3 > 0) for i, shape in enumerate(shapes)]
    fa.assign(zip(variables, old, strict=True))
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for variable, array in zip(variables, new, strict=True):
            file[variable.name] = array
    attacks.settle(path)
    whole = path.read_bytes()
    yield path, variables, old, new
    path.write_bytes(whole)
    fa.load_weights(variables, path)
    assert holds(session, variables, new)


ARENAS = process_runtime().arenas

TINY = {"read_bytes": 4096, "window_bytes": 8192, "max_staging_bytes": 8192, "index_cache": False}


def tiny_plan(variables, path, *, threads=2, **how):
    return fa.plan(variables, path, options=load_options(threads=threads, **TINY), **how)


def assert_state(session, variables, named, old, new):
    """Those that were named have new values, the others their old ones."""
    assert set(named) <= {variable.name for variable in variables} and len(set(named)) == len(named)
    wanted = [b if variable.name in named else a for variable, a, b in zip(variables, old, new, strict=True)]
    assert holds(session, variables, wanted)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("fault", ["fails_at", "ends_at"])
def test_storage_fails(fault, share, threads, case, session):
    path, variables, old, new = case
    plan = tiny_plan(variables, path, threads=threads)
    assert len(plan.schedule.batches) > 2
    extents = sorted(e.offset for r in fa.inspect(path).contents.records.values() for e in r.extents)
    place = extents[int(share * len(extents))]
    with pytest.raises(OSError) as caught:
        with_source(plan, getattr(faults, fault)(place)).execute()
    assert_state(session, variables, caught.value.assigned, old, new)


def test_storage_fails_at_the_end(case, session):
    """By then others are assigned, in the order of the file."""
    path, variables, old, new = case
    plan = tiny_plan(variables, path, threads=1)
    last = plan.schedule.batches[-1].placements[-1].assignment.record.extents[-1]
    with pytest.raises(fa.Truncated) as caught:
        with_source(plan, faults.ends_at(last.offset + last.nbytes - 1)).execute()
    assert 0 < len(caught.value.assigned) < len(variables)
    assert_state(session, variables, caught.value.assigned, old, new)


def test_bad_but_whole_storage(case, session):
    path, variables, _, new = case
    plan = tiny_plan(variables, path)
    with_source(plan, faults.random_shares(1)).execute()
    assert holds(session, variables, new)


def test_file_cut_short(case, session):
    path, variables, old, _ = case
    plan = tiny_plan(variables, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises((fa.Changed, fa.Truncated)):
        plan.execute()
    assert holds(session, variables, old)


def test_file_changes_while_it_is_read(case, session):
    path, variables, old, new = case
    plan = tiny_plan(variables, path, threads=1)

    def touch(number, offset, wanted):
        if number == 2:
            os.utime(path, ns=(1, 1))

    with pytest.raises(fa.Changed) as caught:
        with_source(plan, faults.faulty(before=touch)).execute()
    assert len(caught.value.assigned) < len(variables)
    assert_state(session, variables, caught.value.assigned, old, new)


def test_atomic_load_that_storage_ends(case, session):
    path, variables, old, _ = case
    plan = fa.plan(variables, path, atomic=True)
    last = plan.schedule.batches[-1].placements[-1].assignment.record.extents[-1]
    with pytest.raises(fa.Truncated) as caught:
        with_source(plan, faults.ends_at(last.offset)).execute()
    assert caught.value.assigned == ()
    assert holds(session, variables, old)


@pytest.mark.parametrize("atomic", [False, True])
def test_callback_that_raises_after_the_first_assignment(atomic, case, session):
    """What the error says of the state is true; what a session was fed with is not taken back, even if atomic."""
    path, variables, old, new = case

    def progress(event):
        if event.done_variables:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough") as caught:
        fa.load_weights(variables, path, atomic=atomic, progress=progress)
    assert caught.value.assigned
    assert_state(session, variables, caught.value.assigned, old, new)


def test_atomic_load_of_a_file_that_changes_when_all_is_read(case, session):
    path, variables, _, new = case

    def progress(event):
        if event.done_variables == event.total_variables:
            os.utime(path, ns=(1, 1))

    fa.load_weights(variables, path, atomic=True, progress=progress)
    assert holds(session, variables, new)


@pytest.mark.parametrize("atomic", [False, True])
def test_conversions_of_which_one_fails(atomic, tmp_path, session):
    """A file of two recurrent layers in CuDNN's layout, the second damaged."""
    model = tf_keras.Sequential([
        tf_keras.Input((3, 4)),
        tf_keras.layers.LSTM(2, return_sequences=True, name="one"),
        tf_keras.layers.LSTM(2, name="two"),
    ])  # fmt: skip
    old = [np.full(weight.shape, 0.5, np.float32) for weight in model.weights]
    fa.assign(zip(model.weights, old, strict=True))
    path = tmp_path / "x.h5"
    rng = np.random.default_rng(0)
    layers = [
        (name, [(f"{name}/w{i}:0", rng.normal(size=shape).astype(np.float32)) for i, shape in enumerate(shapes)])
        for name, shapes in (("one", [(4, 8), (2, 8), (16,)]), ("two", [(2, 8), (2, 8), (16,)]))
    ]
    differential.write_legacy(path, layers, version="2.2.0", backend="tensorflow")
    attacks.settle(path)
    fa.load_weights(model, path)
    new = session.run([weight.value() for weight in model.weights])
    fa.assign(zip(model.weights, old, strict=True))
    plan = fa.plan(model, path, atomic=atomic)
    record = list(plan.matching.conversions.values())[3].recipe.records[0]
    with pytest.raises(OSError) as caught:
        with_source(plan, faults.fails_at(record.extents[0].offset)).execute()
    # Each variable is assigned when what it is made of was read.
    assert caught.value.assigned == (() if atomic else tuple(weight.name for weight in model.weights[:3]))
    assert_state(session, model.weights, caught.value.assigned, old, new)


# What is told.


def test_progress_and_report(files, graph, session):
    model = graph_modes.build("small")
    events = []
    report = fa.load_weights(model, files / "small.whole.h5", progress=events.append)
    total = sum(4 * int(np.prod(weight.shape)) for weight in model.weights)
    assert report.nbytes == total and report.assigned == len(model.weights) and report.routes == {"feed": 4}
    assert report.missing == report.unexpected == report.cast == report.skipped == ()
    assert {"index", "match", "plan", "execute", "assign", "total"} <= report.seconds.keys()
    assert (events[-1].done_bytes, events[-1].done_variables) == (total, len(model.weights))


def test_plan_says_feed_and_changes_nothing(files, graph, session):
    model = graph_modes.build("small")
    count = count_ops(graph)
    plan = fa.plan(model, files / "small.h5")
    assert {row["route"] for row in plan.to_dict()["tensors"]} == {"feed"}
    assert count_ops(graph) == count
    assert plan.execute().assigned == len(model.weights)
    assert holds(session, model, graph_modes.saved(files, "small"))


def test_budget_bounds_what_is_staged(case, session):
    path, variables, _, new = case
    plan = tiny_plan(variables, path)
    assert plan.staging_bytes <= TINY["max_staging_bytes"]
    assert len(plan.schedule.batches) > 2
    plan.execute()
    assert holds(session, variables, new)


def test_skipped_mismatch(files, graph, session):
    model = models.chain(tf_keras, 5, 7, names=("first", "second"))
    old = [np.full(weight.shape, 0.5, np.float32) for weight in model.weights]
    fa.assign(zip(model.weights, old, strict=True))
    with graph_modes.warnings.catch_warnings():
        graph_modes.warnings.simplefilter("ignore")
        report = fa.load_weights(model, files / "functional.weights.h5", skip_mismatch=True)
    assert report.skipped
    found = session.run([weight.value() for weight in model.weights])
    assert not graph_modes.same(found[:2], old[:2]) and graph_modes.same(found[2:], old[2:])
