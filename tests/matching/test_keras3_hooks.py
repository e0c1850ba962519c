"""Objects of Keras 3 models that load themselves: users' layers, preprocessing, quantised layers, LoRA.

Rows are numbered as in docs/internals/keras.md, section 9.
"""

import h5py
import keras
import numpy as np
import pytest

import fastassign
from support.differential import (
    check,
    differences,
    fill,
    fresh,
    needs_keras_3_15,
    our_load,
    perturb,
    quiet,
    saved,
    snapshot,
    stock_load,
    text_of,
)

L = keras.layers


class Own(L.Layer):
    """A layer with a kernel and a bias, and a method of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.kernel = self.add_weight(shape=(4, 4), name="kernel")
        self.bias = self.add_weight(shape=(4,), name="bias")
        self.seen = None
        self.built = True

    def call(self, x):
        return x


class Good(Own):
    def save_own_variables(self, store):
        store["b"], store["k"] = self.bias, self.kernel

    def load_own_variables(self, store):
        self.seen = (sorted(store.keys()), len(store), "k" in store, "nope" in store, list(store.keys()) != [])
        self.kernel.assign(store["k"])
        self.bias.assign(store["b"])


class Calling(Own):
    """Does a little itself, and leaves the rest to Keras."""

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.bias.assign_add(np.ones(4))
        self.seen = "loaded"


class Raising(Good):
    def load_own_variables(self, store):
        self.kernel.assign(store["k"])
        raise RuntimeError("not this one")


class MissingKey(Good):
    def load_own_variables(self, store):
        self.kernel.assign(store["k"])
        self.bias.assign(store["absent"])


class WrongShape(Good):
    def load_own_variables(self, store):
        self.bias.assign(store["b"])
        self.kernel.assign(store["b"])


class Partial(Good):
    def load_own_variables(self, store):
        self.bias.assign(store["b"])


class Nothing(Good):
    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        self.seen = len(store.keys())


class Transposing(Good):
    def load_own_variables(self, store):
        self.kernel.assign(np.asarray(store["k"]).T)
        self.bias.assign(store["b"][::-1])


def around(make):
    """A model of a plain layer, the layer in question, and another plain one."""

    def build():
        layers = [keras.Input((4,)), L.Dense(4, name="before"), make(), L.Dense(4, name="after")]
        return keras.Sequential(layers, name="m")

    return build


@pytest.mark.parametrize("cls", [Good, Calling, Partial, Nothing, Transposing])
def test_methods_that_work(cls, tmp_path):
    build = around(lambda: cls(name="own"))
    done = check(build, saved(build, tmp_path / "x.weights.h5"))
    assert done.stock.error is None
    assert done.our_model.get_layer("own").seen == done.stock_model.get_layer("own").seen
    check(build, saved(build, tmp_path / "x.keras"))


@needs_keras_3_15
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("cls", [Raising, MissingKey, WrongShape])
def test_methods_that_fail(cls, skip, tmp_path):
    build = around(lambda: cls(name="own"))
    done = check(build, saved(build, tmp_path / "x.weights.h5"), skip_mismatch=skip)
    assert (done.stock.error is None) == skip
    if skip:
        assert any("own" in line for line in done.report.skipped)


def test_several_methods_that_fail(tmp_path):
    build = around(
        lambda: keras.Sequential([keras.Input((4,)), Good(name="a"), Raising(name="b"), WrongShape(name="c")])
    )
    path = saved(build, tmp_path / "x.weights.h5")
    model = perturb(fresh(build), 0.5)
    before = snapshot(model)
    assert "A total of 2 objects" in text_of(stock_load(model, path).error)
    perturb(model, 0.5)
    # The first failure ends the load: the others are not tried, and those that ran are rolled back.
    with pytest.raises(ValueError, match="not this one"):
        fastassign.load_weights(model, path)
    assert differences(snapshot(model), before) == []


def test_failure_beside_a_mismatch(tmp_path):
    """Errors that metadata show come first, and no method runs."""
    build = around(lambda: Raising(name="own"))
    path = saved(build, tmp_path / "x.weights.h5")
    with h5py.File(path, "r+") as file:
        del file["layers/dense_1/vars/1"]
    model = perturb(fresh(build), 0.5)
    before = snapshot(model)
    with pytest.raises(ValueError, match="A total of 1 objects"):
        fastassign.load_weights(model, path)
    assert differences(snapshot(model), before) == []


def test_atomic_takes_methods_back(tmp_path):
    build = around(lambda: Good(name="own"))
    path = saved(build, tmp_path / "x.weights.h5")
    check(build, path, loader=lambda model, where: our_load(model, where, atomic=True))


def test_instance_method(tmp_path):
    """A method set on the object itself."""

    def make():
        layer = Own(name="own")
        layer.__dict__["load_own_variables"] = lambda store: layer.bias.assign(store["1"] * 2)
        return layer

    build = around(make)
    assert check(build, saved(build, tmp_path / "x.weights.h5")).stock.error is None


@pytest.mark.parametrize("skip", [False, True])
def test_second_chance_of_an_own_method(skip, tmp_path):
    """Under a renamed attribute a layer is reached again by `layers`."""

    class Root(keras.Model):
        def __init__(self, name_of_it, **kwargs):
            super().__init__(**kwargs)
            setattr(self, name_of_it, Good(name="own"))
            self.built = True

    path = saved(lambda: Root("aa", name="m"), tmp_path / "x.weights.h5")
    for name in ("aa", "ab", "zz"):
        check(lambda n=name: Root(n, name="m"), path, skip_mismatch=skip)
    path = saved(lambda: Root("zz", name="m"), tmp_path / "y.weights.h5")
    for name in ("aa", "zz", "yy"):
        check(lambda n=name: Root(n, name="m"), path, skip_mismatch=skip)


def test_plain_subclass_is_not_a_hook(tmp_path):
    class MyDense(L.Dense):
        pass

    build = around(lambda: MyDense(4, name="mine"))
    done = check(build, saved(build, tmp_path / "x.weights.h5"))
    assert "hook" not in done.report.routes


# Preprocessing.


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_normalization(suffix, tmp_path):
    build = around(lambda: L.Normalization(name="scale"))
    done = check(build, saved(build, tmp_path / f"x{suffix}"))
    layer = done.our_model.get_layer("scale")
    assert np.array_equal(np.ravel(layer.mean), np.ravel(layer.adapt_mean.numpy()))


@pytest.mark.parametrize("mode", ["tf_idf", "int"])
def test_text_vectorization(mode, tmp_path):
    def build():
        layer = L.TextVectorization(output_mode=mode, name="text")
        layer.adapt(["one two three", "two three", "three"])
        inputs = keras.Input((), dtype="string")
        return keras.Model(inputs, layer(inputs), name="m")

    def other():
        model = build()
        if mode == "tf_idf":
            lookup = model.get_layer("text")._lookup_layer
            lookup.idf_weights.assign(lookup.idf_weights * 0 + 3)
        return model

    with quiet():
        build().save_weights(tmp_path / "x.weights.h5")
        theirs, ours = other(), other()
    assert stock_load(theirs, tmp_path / "x.weights.h5").error is None
    fastassign.load_weights(ours, tmp_path / "x.weights.h5")
    texts = np.array(["two three", "one"], dtype=object)
    assert np.array_equal(np.asarray(theirs(keras.ops.convert_to_tensor(texts, "string"))),
                          np.asarray(ours(keras.ops.convert_to_tensor(texts, "string"))))  # fmt: skip
    if mode == "tf_idf":
        values = [m.get_layer("text")._lookup_layer.idf_weights.numpy() for m in (theirs, ours)]
        assert np.array_equal(*values) and not np.all(values[0] == 3)


def test_string_lookup(tmp_path):
    def build():
        inputs = keras.Input((), dtype="string")
        x = L.StringLookup(vocabulary=["a", "b"], output_mode="one_hot", name="look")(inputs)
        return keras.Model(inputs, L.Dense(2, name="d")(x), name="m")

    assert check(build, saved(build, tmp_path / "x.weights.h5")).stock.error is None


@pytest.mark.parametrize("bins", [None, 3])
def test_discretization(bins, tmp_path):
    def build():
        layer = L.Discretization(num_bins=3, name="bins") if bins else L.Discretization([0.0, 1.0], name="bins")
        if bins:
            layer.adapt(np.arange(10.0))
        inputs = keras.Input((2,))
        return keras.Model(inputs, L.Dense(2, name="d")(keras.ops.cast(layer(inputs), "float32")), name="m")

    check(build, saved(build, tmp_path / "x.weights.h5"))


# Quantised layers and LoRA.


def dense(mode, *, lora=False, bias=True):
    def build():
        layer = L.Dense(8, use_bias=bias, name="q")
        layer.build((None, 16))
        return finished(layer, mode, lora)

    return build


def einsum(mode, *, lora=False, bias=True):
    def build():
        layer = L.EinsumDense("ab,bc->ac", 8, bias_axes="c" if bias else None, name="q")
        layer.build((None, 16))
        return finished(layer, mode, lora)

    return build


def embedding(mode, *, lora=False, bias=True):
    def build():
        layer = L.Embedding(6, 16, name="q")
        layer.build()
        return finished(layer, mode, lora)

    return build


def conv(mode, *, lora=False, bias=True):
    def build():
        layer = L.Conv2D(3, 2, use_bias=bias, name="q")
        layer.build((None, 4, 4, 2))
        return finished(layer, mode, lora)

    return build


def finished(layer, mode, lora):
    if lora:
        layer.enable_lora(2)
    if mode:
        layer.quantize(mode)
    model = Holding(layer, name="m")
    model.built = True
    return model


class Holding(keras.Model):
    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, x):
        return self.layer(x)


KINDS = [(kind, mode, bias, lora) for kind in (dense, einsum, embedding, conv) for mode in (None, "int8", "int4")
         for bias in (True, False) for lora in (False, True)
         if not (mode and kind is conv) and (bias or kind is not embedding)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode", "bias", "lora"), KINDS)
def test_quantised_and_lora(kind, mode, bias, lora, tmp_path):  # row 58
    path = saved(kind(mode, bias=bias, lora=lora), tmp_path / "x.weights.h5")
    done = check(kind(mode, bias=bias, lora=lora), path)
    assert done.stock.error is None
    if not mode and not lora:
        assert "hook" not in done.report.routes


@pytest.mark.slow
@needs_keras_3_15
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("loading", [None, "int8", "int4", "float8"])
@pytest.mark.parametrize("saving", [None, "int8", "float8"])
def test_across_quantisation_modes(saving, loading, skip, tmp_path):
    check(dense(loading), saved(dense(saving), tmp_path / "x.weights.h5"), skip_mismatch=skip)


@pytest.mark.parametrize("kind", [dense, einsum, embedding, conv])
def test_lora_file_into_plain_layer_and_back(kind, tmp_path):
    for saving in (False, True):
        path = saved(kind(None, lora=saving), tmp_path / f"{saving}.weights.h5")
        for loading in (False, True):
            check(kind(None, lora=loading), path)


def test_lora_in_legacy_files(tmp_path):
    build = dense(None, lora=True)
    assert check(build, saved(build, tmp_path / "x.h5")).stock.error is None


@pytest.mark.parametrize("kind", [dense, einsum, embedding, conv])
@pytest.mark.parametrize("skip", [False, True])
def test_shapes_of_kernel_layers(kind, skip, tmp_path):
    """Layers whose own method is replaced by a list of variables fail as that method does."""
    path = saved(kind(None), tmp_path / "x.weights.h5")
    with h5py.File(path, "r+") as file:
        group = file["layer/vars"]
        values = group["0"][()]
        del group["0"]
        group["0"] = values[:-1]
    check(kind(None), path, skip_mismatch=skip)
    with h5py.File(path, "r+") as file:
        del file["layer/vars/0"]
    check(kind(None), path, skip_mismatch=skip)


def test_unbuilt_kernel_layer(tmp_path):
    """A Dense that was never built counts its variables, and then does nothing."""

    def build(built):
        layer = L.Dense(3, name="d")
        if built:
            layer.build((None, 2))
        model = Holding(layer, name="m")
        model.built = True
        model.other = L.Dense(2, name="o")
        model.other.build((None, 2))
        return model

    for saving in (True, False):
        path = saved(lambda s=saving: build(s), tmp_path / f"{saving}.weights.h5")
        for loading in (True, False):
            for skip in (False, True):
                check(lambda b=loading: build(b), path, skip_mismatch=skip)


def test_optimizers(tmp_path):
    for name in ("sgd", "adam", "rmsprop", "lion", "nadam", "adafactor", "ftrl"):

        def build(name=name):
            model = keras.Sequential([keras.Input((2,)), L.Dense(3, name="d")], name="m")
            model.compile(optimizer=name, loss="mse")
            model.optimizer.build(model.trainable_variables)
            return model

        done = check(build, saved(build, tmp_path / f"{name}.weights.h5"))
        assert done.report.assigned == 2 + len(done.our_model.optimizer.variables)


def test_loss_scale_optimizer(tmp_path):
    def build():
        model = keras.Sequential([keras.Input((2,)), L.Dense(3, name="d")], name="m")
        model.compile(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), loss="mse")
        model.optimizer.build(model.trainable_variables)
        return model

    check(build, saved(build, tmp_path / "x.weights.h5"))


def test_filled_values_reach_the_model(tmp_path):
    """Checks the helper: it would detect a load that did nothing."""
    build = around(lambda: Good(name="own"))
    path = saved(build, tmp_path / "x.weights.h5")
    with pytest.raises(AssertionError):
        check(build, path, loader=lambda model, where: stock_load(fill(fresh(build)), where))
