"""Loaders of models in TensorFlow 1 graphs."""

import pytest
import tensorflow as tf
import tf_keras
from tf_keras.src import backend

import fastassign as fa
from support import differential as d
from support.loading import KEPT, LONG, MADE, dense, in_background


class TestGraphs:
    @pytest.fixture
    def paths(self, tmp_path):
        return [d.saved(lambda: dense(tf_keras), tmp_path / f"{seed}.h5", seed) for seed in (1, 2)]

    @pytest.fixture
    def expected(self, paths):
        stock = dense(tf_keras)
        found = []
        for path in paths:
            stock.load_weights(path)
            found.append([weight.numpy().tobytes() for weight in stock.weights])
        return found

    @pytest.mark.parametrize("swap", ["each", "together"])
    def test_loads_and_ops(self, swap, paths, expected):
        """The ops are made once."""
        with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
            model = dense(tf_keras)
            with fa.Loader(model, options=fa.LoadOptions(swap=swap)) as loader:
                count, remarks = None, []
                for turn in range(6):
                    load = in_background(loader) if turn % 2 else loader.load
                    remarks.append(load(paths[turn % 3 % 2]).plan)
                    assert fetch(session, model) == expected[turn % 3 % 2]
                    assert count in (None, len(graph.get_operations()))
                    count = len(graph.get_operations())
            assert remarks == [MADE, *[KEPT] * 5]

    def test_a_session_that_is_given(self, paths, expected):
        graph = tf.Graph()
        with graph.as_default():
            model = dense(tf_keras)
        with tf.compat.v1.Session(graph=graph) as given, tf.compat.v1.Session(graph=graph) as other:
            other.run([weight.initializer for weight in model.weights])
            before = fetch(other, model)
            with fa.Loader(model, session=given) as loader:
                for load in (loader.load, in_background(loader), loader.load):
                    load(paths[0])
                    assert fetch(given, model) == expected[0]
                    assert fetch(other, model) == before

    def test_the_default_session_is_the_caller_s(self, paths, expected):
        """Not that of the load before, and not one of the thread that loads."""
        graph = tf.Graph()
        with graph.as_default():
            model = dense(tf_keras)
        with fa.Loader(model) as loader:
            for background in (False, True, True, False):
                with tf.compat.v1.Session(graph=graph) as session:
                    for path, new in zip(paths, expected, strict=True):
                        (in_background(loader) if background else loader.load)(path)
                        assert fetch(session, model) == new

    def test_the_session_of_tf_keras(self, paths, expected):
        """It has one for each thread: this one's is meant."""
        with tf.Graph().as_default():
            model = dense(tf_keras)
            with fa.Loader(model) as loader:
                for path, new in zip(paths, expected, strict=True):
                    loader.load_async(path).result(LONG)
                    assert fetch(backend.get_session(), model) == new

    def test_no_session(self, paths, expected):
        """The error comes with the result, and the loader works afterwards."""
        graph = tf.Graph()
        with graph.as_default():
            variables = {"a/a/kernel:0": tf.compat.v1.get_variable("kernel", (4, 5), use_resource=True)}
        with fa.Loader(variables) as loader:
            for load in (loader.load, in_background(loader)):
                with pytest.raises(fa.FastAssignError, match="no session was given"):
                    load(paths[0])
            with tf.compat.v1.Session(graph=graph) as session:
                for path, new in zip(paths, expected, strict=True):
                    loader.load(path)
                    assert session.run(variables["a/a/kernel:0"]).tobytes() == new[0]


def fetch(session, model):
    return [array.tobytes() for array in session.run(model.weights)]
