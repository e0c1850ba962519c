"""A graph, a session, files to load, and an eager variable made before."""

import h5py
import numpy as np
import pytest
import tensorflow as tf

import fastassign as fa
from support import attacks, graph_modes
from support.graph_modes import variable_of
from support.graphs import holds, v1


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


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The files of `graph_modes`, with weights and predictions beside them; nothing writes into them."""
    folder = tmp_path_factory.mktemp("modes")
    graph_modes.write_files(folder)
    return folder


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
