"""What a model does between loads: training, strategies, functions, graphs."""

import numpy as np
import pytest
import tensorflow as tf

import fastassign as fa
from support import differential as d
from support import models
from support.loading import BOTH, compare, dense, in_background, values


class TestTraining:
    @BOTH
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_steps_between_loads(self, k, optimizer, tmp_path):
        """Each load is exact, each step is that of a model which stock loaded, and nobody else's memory changes."""

        def build():
            return models.compiled(k, dense(k), optimizer)

        rng = np.random.default_rng(0)
        x, y = rng.random((8, 4)).astype("f4"), rng.random((8, 3)).astype("f4")

        def state(model):
            return [d.value_of(variable).tobytes() for variable in (*model.weights, *model.optimizer.variables)]

        model, stock = d.twins(build)
        model.run_eagerly = stock.run_eagerly = optimizer == "sgd"
        paths, held = [], []
        for steps in (1, 2):
            stock.train_on_batch(x, y)
            paths.append(d.save(stock, tmp_path / f"{steps}.weights.h5"))
        with fa.Loader(model) as loader:
            for turn in range(5):
                (in_background(loader) if turn % 2 else loader.load)(paths[turn % 2])
                stock.load_weights(paths[turn % 2])
                assert state(model) == state(stock)
                held.append([(tf.identity(weight), d.value_of(weight).tobytes()) for weight in model.weights])
                for each in (model, stock):
                    each.train_on_batch(x, y)
                assert state(model) == state(stock)
                assert state(model)[: len(held[-1])] != [then for _, then in held[-1]]
        assert all(tensor.numpy().tobytes() == then for pairs in held for tensor, then in pairs)

    @BOTH
    def test_variables_of_a_strategy(self, k, tmp_path):
        """Each replica has the values."""
        paths = [d.saved(lambda: models.sequential(k), tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        strategy, stock = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), models.sequential(k)
        with strategy.scope():
            model = models.sequential(k)
        with fa.Loader(model) as loader:
            for turn in range(4):
                (in_background(loader) if turn % 2 else loader.load)(paths[turn // 2])
                stock.load_weights(paths[turn // 2])
                for weight, expected in zip(model.weights, stock.weights, strict=True):
                    for replica in getattr(weight, "_value", weight).values:
                        assert replica.numpy().tobytes() == d.value_of(expected).tobytes()

    @BOTH
    def test_functions_are_not_traced_again(self, k, tmp_path):
        paths = [d.saved(lambda: dense(k), tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        model, stock = d.twins(lambda: dense(k))
        call, x = tf.function(model), np.ones((1, 4), "f4")
        call(x)
        with fa.Loader(model) as loader:
            for turn in range(4):
                compare(loader, model, stock, paths[turn % 2])
                np.testing.assert_allclose(call(x), stock(x), rtol=1e-6)
        assert call.experimental_get_tracing_count() == 1

    def test_loads_inside_a_graph(self, files, contents, model):
        """Of eager variables: nothing is added to it."""
        with fa.Loader(model) as loader:
            for seed in (1, 2, 1):
                with tf.Graph().as_default() as graph:
                    loader.load(files[seed])
                    assert graph.get_operations() == []
                assert values(model) == contents[seed]
