"""Sessions and graphs in several threads."""

import threading

import h5py
import numpy as np
import tf_keras

import fastassign as fa
from support import graph_modes, models
from support.graph_modes import variable_of
from support.graphs import count_ops, holds, v1, value


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
    thread.join(120)
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
            barrier.wait(120)
            for _ in range(8):
                fa.load_weights(list(model.weights), paths[i], session=sessions[i])
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            failures.append(error)

    threads = [threading.Thread(target=load, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert count_ops(graph) == count + 2 * len(model.weights)
    for session, values in zip(sessions, contents, strict=True):
        assert holds(session, model, values)


def test_loader_in_the_background(files, graph, session):
    model = graph_modes.build("small")
    with fa.Loader(model, session=session) as loader:
        for suffix in (".h5", ".weights.h5"):
            fa.assign([(weight, np.zeros(weight.shape)) for weight in model.weights])
            loader.load_async(files / f"small{suffix}").result(120)
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
        thread.join(120)
    assert failures == []
    assert (value(session, variable) == 59).all()
