"""A model that changes between loads: the plan is made again, and fits."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import fastassign as fa
from support import differential as d
from support import models
from support.loading import AGAIN, BOTH, KEPT, MADE, compare, dense, in_background, trained, values

OTHER_MODEL = AGAIN + "the model's layers, variables, trainable flags or scopes have changed"


class TestModelChanges:
    @BOTH
    @pytest.mark.parametrize(
        ("kind", "match"), [("functional", "stock"), ("functional", "names"), ("composite", "stock")]
    )
    def test_layers_frozen_and_thawed(self, k, kind, match, tmp_path):
        """The order of a legacy file depends on it: what comes of each load is what comes of `load_weights`."""
        (model, *parts), (twin, *others) = models.nested(k, kind, named=False), models.nested(k, kind, named=False)
        path = d.save(d.fill(models.nested(k, kind, named=False)[0], 1), tmp_path / "m.h5")
        options = fa.LoadOptions(match=match)
        outcomes = []
        with fa.Loader(model, options=options) as loader:
            for mode in (*models.MODES, "train"):
                for base, layers in (parts, others):
                    models.set_mode(base, layers, mode)
                d.perturb(model, 0.25)
                d.perturb(twin, 0.25)
                ours = d.observe(lambda: loader.load(path))
                fresh = d.observe(lambda: fa.load_weights(twin, path, options=options))
                assert type(ours.error) is type(fresh.error)
                assert values(model) == values(twin)
                outcomes.append(fresh.error is None)
                if fresh.error is None:
                    assert ours.result.repaired == fresh.result.repaired
        assert outcomes[0]
        assert outcomes[-1]

    @BOTH
    def test_frozen_and_thawed_of_the_other_format(self, k, tmp_path):
        paths = [d.saved(lambda: dense(k), tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        model, stock = d.twins(lambda: dense(k))
        with fa.Loader(model) as loader:
            assert compare(loader, model, stock, paths[0]).plan == MADE
            model.layers[1].trainable = stock.layers[1].trainable = False
            assert compare(loader, model, stock, paths[1]).plan == OTHER_MODEL
            assert compare(loader, model, stock, paths[0]).plan == KEPT

    @BOTH
    def test_a_layer_more_and_a_layer_less(self, k, tmp_path):
        small = d.saved(lambda: models.chain(k, 4, 4), tmp_path / "small.weights.h5", 1)
        large = d.saved(lambda: models.chain(k, 4, 4, 4), tmp_path / "large.weights.h5", 2)
        model, stock = d.twins(lambda: models.chain(k, 4, 4))
        with fa.Loader(model) as loader:
            assert compare(loader, model, stock, small).plan == MADE
            for each in (model, stock):
                each.add(k.layers.Dense(4))
            assert compare(loader, model, stock, large).plan == OTHER_MODEL
            with pytest.raises(fa.Mismatch):
                loader.load(small)
            for each in (model, stock):
                each.pop()
            assert compare(loader, model, stock, small).plan == OTHER_MODEL
            assert compare(loader, model, stock, small).plan == KEPT

    @BOTH
    def test_a_layer_without_weights(self, k, tmp_path):
        path = d.saved(lambda: models.chain(k, 4, 4), tmp_path / "m.weights.h5")
        model, stock = d.twins(lambda: models.chain(k, 4, 4))
        with fa.Loader(model) as loader:
            compare(loader, model, stock, path)
            for each in (model, stock):
                each.add(k.layers.ReLU())
            assert compare(loader, model, stock, path).plan == OTHER_MODEL

    @BOTH
    @pytest.mark.parametrize("where", ["attributes", "list", "mapping"])
    def test_layers_that_changed_places(self, k, where, tmp_path):
        """The file goes by attributes, and nothing else tells."""

        class Pair(k.Model):
            def __init__(self):
                super().__init__()
                layers = [k.layers.Dense(3, name="x"), k.layers.Dense(3, name="y")]
                if where == "attributes":
                    self.one, self.two = layers
                elif where == "list":
                    self.both = layers
                else:
                    self.both = dict(zip("ab", layers, strict=True))

            def get(self):
                if where == "attributes":
                    return [self.one, self.two]
                return list(self.both.values() if where == "mapping" else self.both)

            def call(self, inputs):
                one, two = self.get()
                return two(one(inputs))

            def swap(self):
                if where == "attributes":
                    self.one, self.two = self.two, self.one
                else:
                    first, second = "ab" if where == "mapping" else (0, 1)
                    self.both[first], self.both[second] = self.both[second], self.both[first]

        def build():
            model = Pair()
            model(np.zeros((1, 3), "f4"))
            return model

        path = d.saved(build, tmp_path / "m.weights.h5")
        model, stock = d.twins(build)
        with fa.Loader(model) as loader:
            assert compare(loader, model, stock, path).plan == MADE
            model.swap(), stock.swap()
            assert compare(loader, model, stock, path).plan == OTHER_MODEL
            assert compare(loader, model, stock, path).plan == KEPT

    def test_inside_a_stateless_scope(self, files, contents, model):
        """There an assignment goes to the scope."""
        with fa.Loader(model) as loader:
            loader.load(files[1])
            before = values(model)
            with keras.StatelessScope() as scope:
                assert loader.load(files[2]).plan == OTHER_MODEL
                inside = [np.asarray(scope.get_current_value(variable)).tobytes() for variable in model.variables]
            assert (values(model), inside) == (before, contents[2])
            assert loader.load(files[2]).plan == OTHER_MODEL
        assert values(model) == contents[2]

    def test_lora(self, files, model):
        stock = d.fresh(dense)
        with fa.Loader(model) as loader:
            compare(loader, model, stock, files[1])
            for each in (model, stock):
                each.layers[1].enable_lora(2)
            report = compare(loader, model, stock, files[2])
            assert report.plan == OTHER_MODEL
            assert report.routes["hook"] > 0
            assert compare(loader, model, stock, files[1]).plan == KEPT
            assert compare(loader, model, stock, files[2], load=in_background(loader)).plan == KEPT

    def test_quantized(self, files, model, tmp_path):
        def quantized():
            found = dense()
            found.quantize("int8")
            return found

        path = d.saved(quantized, tmp_path / "int8.weights.h5")
        stock = d.fresh(dense)
        with fa.Loader(model) as loader:
            compare(loader, model, stock, files[1])
            with d.quiet():
                model.quantize("int8")
                stock.quantize("int8")
            assert compare(loader, model, stock, path).plan == OTHER_MODEL
            assert compare(loader, model, stock, path).plan == KEPT

    @BOTH
    def test_an_optimizer_that_is_built_later(self, k, tmp_path):
        """A file that holds its variables fills them, once there are any."""
        path = d.saved(lambda: trained(k), tmp_path / "m.weights.h5", 3)
        model, stock = d.twins(lambda: models.compiled(k, models.functional(k), slots=False))
        with fa.Loader(model) as loader:
            assert "optimizer" in compare(loader, model, stock, path).skipped[0]
            for each in (model, stock):
                each.optimizer.build(each.trainable_variables)
            report = compare(loader, model, stock, path)
            assert (report.plan, report.skipped) == (OTHER_MODEL, ())
            assert compare(loader, model, stock, path).plan == KEPT

    @BOTH
    def test_another_optimizer(self, k, tmp_path):
        path = d.saved(lambda: trained(k), tmp_path / "m.weights.h5", 3)
        model, stock = d.twins(lambda: trained(k))
        with fa.Loader(model) as loader:
            compare(loader, model, stock, path)
            for each in (model, stock):
                models.compiled(k, each)
            assert compare(loader, model, stock, path).plan == OTHER_MODEL

    def test_a_mapping(self, files, contents):
        one, other = (tf.Variable(tf.zeros((4, 5))) for _ in range(2))
        variables = {"layers/dense/vars/0": one}
        with fa.Loader(variables) as loader:
            loader.load(files[1])
            variables["layers/dense/vars/0"] = other
            report = loader.load(files[2])
            assert (report.plan, report.assigned) == (OTHER_MODEL, 1)
            assert [one.numpy().tobytes(), other.numpy().tobytes()] == [contents[1][0], contents[2][0]]
            variables["layers/dense_1/vars/0"] = third = tf.Variable(tf.zeros((5, 5)))
            assert loader.load(files[1]).assigned == 2
            assert third.numpy().tobytes() == contents[1][2]
            variables["layers/dense_2/vars/1"] = variables.pop("layers/dense_1/vars/0")
            with pytest.raises(fa.Mismatch, match="the variable has shape"):
                loader.load(files[1])

    def test_a_list(self, tmp_path):
        with h5py.File(tmp_path / "m.h5", "w") as file:
            file["one"], file["two"] = np.float32(1.5), np.float32(2.5)
        variables = [tf.Variable(0.0, name="one")]
        with fa.Loader(variables) as loader:
            loader.load(tmp_path / "m.h5")
            variables.append(tf.Variable(0.0, name="two"))
            assert loader.load(tmp_path / "m.h5").plan == OTHER_MODEL
        assert [variable.numpy() for variable in variables] == [1.5, 2.5]

    def test_a_layer_for_a_model(self, tmp_path):
        layers = [keras.layers.Dense(3) for _ in range(2)]
        for layer in layers:
            layer.build((None, 4))
        sources = [tmp_path / f"{seed}.weights.h5" for seed in (1, 2)]
        for seed, path in enumerate(sources):
            with h5py.File(path, "w") as file:
                file["vars/0"], file["vars/1"] = np.full((4, 3), seed, "f4"), np.full(3, seed, "f4")
        with fa.Loader(layers[0]) as loader:
            for turn in range(3):
                assert loader.load(sources[turn % 2]).plan == (KEPT if turn else MADE)
                assert all((np.asarray(variable) == turn % 2).all() for variable in layers[0].variables)
