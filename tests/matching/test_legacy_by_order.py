"""Legacy files by the order of the layers, and the common models in both libraries.

Rows and bugs are numbered as in docs/internals/keras.md, sections 9 and 3.
"""

from functools import cache

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import fastassign
from support.differential import (
    LIBRARIES,
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
    twins_of,
    write_legacy,
)
from support.models import chain, compiled, functional, nested, sequential, with_own_weights, zoo

SUFFIXES = (".h5", ".weights.h5", ".keras", "whole.h5")


@pytest.fixture(params=["keras", "tf_keras"])
def k(request):
    return LIBRARIES[request.param]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("make", [functional, sequential])
def test_common_models(k, make, suffix, tmp_path):  # rows 1 to 4
    pair = twins_of(make, k)
    path = saved(pair, tmp_path / f"x{suffix}")
    wanted = [w.numpy() for w in pair[0].weights]
    done = check(pair, path)
    assert done.stock.error is None
    assert done.report.assigned == len(done.our_model.weights)
    assert not done.report.missing and not done.report.unexpected
    # The values are those that were saved, not merely those that stock loaded.
    assert all(map(np.array_equal, (w.numpy() for w in done.our_model.weights), wanted))


def with_optimizer(k):
    return compiled(k, functional(k))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_optimizer_of_a_compiled_model(k, suffix, tmp_path):  # rows 2 to 4: legacy files leave the optimizer alone
    pair = twins_of(with_optimizer, k)
    done = check(pair, saved(pair, tmp_path / f"x{suffix}"))
    after = snapshot(done.our_model)
    before = snapshot(perturb(done.our_model, 0.75))
    changed = set(differences(after, before))
    slots = {name for name, *_ in before if "adam" in name.lower() or "iteration" in name}
    assert bool(changed & slots) == suffix.endswith((".weights.h5", ".keras"))


@cache
def zoo_twins(k, name):
    return twins(zoo(k)[name])


@pytest.mark.parametrize("name", sorted(zoo(keras)))
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_layer_families(k, name, suffix, tmp_path):  # row 56
    path = saved(zoo_twins(k, name), tmp_path / f"x{suffix}")
    assert check(zoo_twins(k, name), path).stock.error is None


@pytest.mark.parametrize("name", sorted(zoo(keras)))
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
@pytest.mark.parametrize("other", [keras, tf_keras], ids=["keras3-file", "tf_keras-file"])
def test_files_of_the_other_library(name, suffix, other, tmp_path):  # row 57
    k = tf_keras if other is keras else keras
    check(zoo_twins(k, name), saved(zoo_twins(other, name), tmp_path / f"x{suffix}"))


def test_shared_layers(k, tmp_path):  # row 52
    def build():
        shared = k.layers.Dense(4, name="shared")
        one = k.Sequential([k.Input((4,)), shared, k.layers.Dense(4, name="own1")], name="one")
        two = k.Sequential([k.Input((4,)), shared, k.layers.Dense(4, name="own2")], name="two")
        inputs = k.Input((4,))
        return k.Model(inputs, shared(two(one(shared(inputs)))), name="both")

    for suffix in (".h5", ".weights.h5"):
        done = check(build, saved(build, tmp_path / f"x{suffix}"))
        assert done.stock.error is None and not done.report.missing


def test_shared_layer_that_was_saved_twice(k, tmp_path):
    """A file may hold two values for one variable: the later one stays."""

    def build():
        shared = k.layers.Dense(4, name="shared")
        one = k.Sequential([k.Input((4,)), shared], name="one")
        two = k.Sequential([k.Input((4,)), shared], name="two")
        inputs = k.Input((4,))
        return k.Model(inputs, two(one(inputs)), name="both")

    path = saved(build, tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        for name in ("one", "two"):
            weight = file[name].attrs["weight_names"][0]
            file[name][weight][...] = 1 if name == "one" else 2
    for by_name in (False, True):
        done = check(build, path, by_name=by_name)
        assert np.all(done.our_model.get_layer("two").get_layer("shared").kernel.numpy() == 2)


def test_many_layers_split_the_names(k, tmp_path):  # row 8
    names = [f"long_enough_to_fill_the_object_header_{'x' * 2000}_{i}" for i in range(40)]

    def build():
        inputs = x = k.Input((1,))
        for name in names:
            x = k.layers.Dense(1, use_bias=False, name=name)(x)
        return k.Model(inputs, x, name="deep")

    path = saved(build, tmp_path / "x.h5")
    with h5py.File(path) as file:
        assert "layer_names" not in file.attrs and "layer_names1" in file.attrs
    assert check(build, path).report.assigned == 40


def test_many_weights_split_the_names(k, tmp_path):  # row 9
    def build():
        inner = [k.layers.Dense(1, use_bias=False, name=f"inner_{'x' * 2000}_{i}") for i in range(40)]
        base = k.Sequential([k.Input((1,)), *inner], name="base")
        inputs = k.Input((1,))
        return k.Model(inputs, base(inputs), name="outer")

    path = saved(build, tmp_path / "x.h5")
    with h5py.File(path) as file:
        assert "weight_names" not in file["base"].attrs and "weight_names1" in file["base"].attrs
    assert check(build, path).report.assigned == 40


@pytest.mark.parametrize("form", ["fixed", "variable", "text"])
def test_forms_of_the_name_lists(k, form, tmp_path):  # row 10
    path = saved(twins_of(functional, k), tmp_path / "x.h5")

    def rewrite(group, name):
        values = [v if isinstance(v, bytes) else str(v).encode() for v in group.attrs[name]]
        if not values:
            assert group.attrs[name].dtype == np.float64  # how h5py writes an empty list
            return
        kinds = {"fixed": f"S{max(map(len, values))}", "variable": h5py.string_dtype("ascii"),
                 "text": h5py.string_dtype("utf-8")}  # fmt: skip
        group.attrs.create(name, values, dtype=kinds[form])

    with h5py.File(path, "r+") as file:
        rewrite(file, "layer_names")
        for group in file.values():
            rewrite(group, "weight_names")
    assert check(twins_of(functional, k), path).report.assigned == 9


def test_keras1_names_in_tensorflow_order(k, tmp_path):  # row 11
    rng = np.random.default_rng(0)

    def build():
        layers = [
            k.Input((6, 6, 2)),
            k.layers.Conv2D(3, 2, name="conv1"),
            k.layers.BatchNormalization(name="bn"),
            k.layers.Flatten(name="flat"),
            k.layers.Dense(2, name="fc"),
        ]
        return k.Sequential(layers, name="old")

    f = np.float32
    parts = [
        ("convolution2d_1", [("convolution2d_1_W:0", rng.normal(size=(2, 2, 2, 3)).astype(f)),
                             ("convolution2d_1_b:0", rng.normal(size=3).astype(f))]),
        ("batchnormalization_1", [(f"batchnormalization_1_{n}:0", rng.normal(size=3).astype(f))
                                  for n in ("gamma", "beta", "running_mean", "running_std")]),
        ("flatten_1", []),
        ("dense_1", [("dense_1_W:0", rng.normal(size=(75, 2)).astype(f)),
                     ("dense_1_b:0", rng.normal(size=2).astype(f))]),
    ]  # fmt: skip
    done = check(build, write_legacy(tmp_path / "x.h5", parts))
    expected = [values for _, weights in parts for _, values in weights]
    got = [v.numpy() for layer in done.our_model.layers for v in layer.weights]
    assert len(got) == len(expected) and all(map(np.array_equal, got, expected))


def test_theano_kernels_are_taken_as_they_are_if_asked(k, tmp_path):  # row 21
    values = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
    path = write_legacy(
        tmp_path / "x.h5", [("c", [("c/kernel:0", values)])], version="2.1.3", backend="theano"
    )  # fmt: skip
    done = check(
        lambda: k.Sequential([k.Input((4, 4, 2)), k.layers.Conv2D(3, 2, use_bias=False, name="c")], name="m"),
        path,
        loader=lambda model, path: our_load(model, path, options=fastassign.LoadOptions(conv_flip=False)),
    )
    assert np.array_equal(done.our_model.layers[0].kernel.numpy(), values)


def test_file_of_keras_before_1(k, tmp_path):  # row 23
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.attrs["nb_layers"] = 1
        group = file.create_group("layer_0")
        group.attrs["nb_params"] = 1
        group["param_0"] = np.zeros((4, 2), np.float32)

    def build():
        return chain(k, 2, names=["d"])

    done = check(build, path)
    assert "found 0 saved layers" in str(done.ours.error)
    # By name stock loads nothing and says nothing; here that is an error.
    model = fresh(build)
    before = snapshot(model)
    assert stock_load(model, path, by_name=True).error is None
    assert differences(snapshot(model), before) == []
    with pytest.raises(fastassign.errors.Mismatch, match="no layer names"):
        fastassign.load_weights(model, path, by_name=True)


@pytest.mark.parametrize(("inside", "outside"), [((4, 4, 4), (4, 4)), ((4, 4), (4, 4, 4))])
def test_layer_counts(k, inside, outside, tmp_path):  # row 33
    path = saved(lambda: chain(k, *inside), tmp_path / "x.h5")
    assert "Layer count mismatch" in str(check(lambda: chain(k, *outside), path).ours.error)


def test_shape_mismatch(k, tmp_path):  # row 34
    path = saved(lambda: chain(k, 3, 2, names="pq"), tmp_path / "x.h5")
    done = check(lambda: chain(k, 3, 5, names="pq"), path)
    assert isinstance(done.ours.error, ValueError) and done.ours.error.variable and done.ours.error.tensor
    # Stock stops half-way; `check` has asserted that ours did not begin.
    assert differences(snapshot(done.stock_model), snapshot(done.our_model))


def test_shape_mismatch_skipped(tmp_path):  # row 36
    path = saved(lambda: chain(keras, 3, 2, names="pq"), tmp_path / "x.h5")
    done = check(lambda: chain(keras, 3, 5, names="pq"), path, skip_mismatch=True)
    assert len(done.ours.warned) == len(done.report.skipped) == 2 and done.report.assigned == 2


def test_weight_count_mismatch(k, tmp_path):  # row 37
    path = saved(lambda: chain(k, 3, 2, use_bias=False), tmp_path / "x.h5")
    assert "Weight count mismatch" in str(check(lambda: chain(k, 3, 2), path).ours.error)
    if k is keras:
        check(lambda: chain(k, 3, 2), path, skip_mismatch=True)


def test_skip_mismatch_needs_by_name_in_tf_keras(tmp_path):  # row 38
    path = saved(lambda: chain(tf_keras, 3), tmp_path / "x.h5")
    assert check(lambda: chain(tf_keras, 3), path, skip_mismatch=True).ours.error is not None


def test_one_top_level_weight(k, tmp_path):  # row 54
    def build():
        return with_own_weights(k, (2, 3))

    for suffix in (".h5", ".weights.h5"):
        done = check(build, saved(build, tmp_path / f"x{suffix}"))
        assert done.stock.error is None and done.report.assigned == 3


def own_weights_file(path, shapes):
    """Write a legacy file for `with_own_weights` by hand: Keras 3 can't save it."""
    rng = np.random.default_rng(1)
    values = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    dense = [("own/dense/kernel", rng.normal(size=(4, 3)).astype("f4")), ("own/dense/bias", np.ones(3, "f4"))]
    write_legacy(path, [("dense", dense)], version="3.15.1", backend="tensorflow")
    with h5py.File(path, "r+") as file:
        group = file.create_group("top_level_model_weights")
        names = [f"own/own{i}" for i in range(len(shapes))]
        group.attrs["weight_names"] = np.array([name.encode() for name in names])
        for name, value in zip(names, values, strict=True):
            group[name] = value
    return values


def test_several_top_level_weights(tmp_path):  # row 54, bug B3: trainable ones come first
    shapes = ((2,), (3,), (2, 2))
    path = tmp_path / "x.h5"
    values = own_weights_file(path, [shapes[i] for i in (0, 2, 1)])

    def build():
        return with_own_weights(keras, *shapes)

    assert "ambiguous" in str(stock_load(fresh(build), path).error), "stock has learned to load this: use check"
    model = perturb(fresh(build), 0.5)
    fastassign.load_weights(model, path)
    assert all(np.array_equal(model.own[i].numpy(), value) for i, value in zip((0, 2, 1), values, strict=True))


def test_top_level_weights_that_do_not_fit(k, tmp_path):
    path = saved(lambda: with_own_weights(k, (2,)), tmp_path / "x.h5")
    assert "top-level" in str(check(lambda: with_own_weights(k), path).ours.error)
    check(lambda: with_own_weights(k, (3,)), path)
    if k is keras:
        assert check(lambda: with_own_weights(k, (3,)), path, skip_mismatch=True).report.skipped


def test_top_level_weights_of_the_same_size(k, tmp_path):
    """Of another shape: refused as in stock, unless they are to be reshaped."""
    path = saved(lambda: with_own_weights(k, (2, 3)), tmp_path / "x.h5")
    check(lambda: with_own_weights(k, (3, 2)), path)
    model = perturb(with_own_weights(k, (3, 2)), 0.5)
    fastassign.load_weights(model, path, options=fastassign.LoadOptions(reshape=True))
    with h5py.File(path) as file:
        group = file["top_level_model_weights"]
        stored = group[group.attrs["weight_names"][0]][()]
    assert np.array_equal(model.own[0].numpy(), stored.reshape(3, 2))


def test_own_weights_of_a_nested_model(tmp_path):  # row 55, bug B9: tf_keras drops them
    def build(own=(2,)):
        class Inner(tf_keras.Model):
            pass

        inputs = tf_keras.Input((4,))
        inner = tf_keras.Model(inputs, tf_keras.layers.Dense(4, name="d")(inputs), name="inner")
        inner.extra = inner.add_weight(name="extra", shape=own)
        outer = tf_keras.Input((4,))
        return tf_keras.Model(outer, inner(outer), name="outer")

    path = saved(build, tmp_path / "x.h5")
    wanted = fill(fresh(build)).get_layer("inner").extra.numpy()
    theirs, ours = perturb(fresh(build), 0.5), perturb(fresh(build), 0.5)
    assert stock_load(theirs, path).error is None
    assert np.all(theirs.get_layer("inner").extra.numpy() == 0.5), "stock has learned to load this: use check"
    fastassign.load_weights(ours, path)
    assert np.array_equal(ours.get_layer("inner").extra.numpy(), wanted)


def test_nested_normalization(k, tmp_path):  # row 53, bug B4: Keras 3 forgets the constants of nested layers
    def build():
        inner = k.Sequential([k.Input((2,)), k.layers.Normalization(name="scale")], name="inner")
        inputs = k.Input((2,))
        return k.Model(inputs, inner(inputs), name="outer")

    for suffix in (".h5", ".weights.h5"):
        path = saved(build, tmp_path / f"x{suffix}")
        if k is keras and suffix == ".h5":
            theirs, ours = perturb(fresh(build), 0.5), perturb(fresh(build), 0.5)
            assert stock_load(theirs, path).error is None
            fastassign.load_weights(ours, path)
            stale = differences(snapshot(theirs), snapshot(ours))
            assert {"scale.mean", "scale.variance"} == set(stale), "stock has learned to finalise: use check"
            layer = ours.get_layer("inner").get_layer("scale")
            assert np.array_equal(np.ravel(layer.mean), np.ravel(layer.adapt_mean.numpy()))
        else:
            assert check(build, path).stock.error is None


@pytest.mark.parametrize("atomic", [False, True])
def test_atomic_gives_the_same(k, atomic, tmp_path):
    def build():
        return nested(k, "functional")[0]

    path = saved(build, tmp_path / "x.h5")
    check(build, path, loader=lambda model, where: our_load(model, where, atomic=atomic))
