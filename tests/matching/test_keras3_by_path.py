"""Keras 3 files (``.weights.h5`` and ``.keras``): objects that fit, objects left over, and the words of stock.

Rows and bugs are numbered as in docs/internals/keras.md, sections 9 and 3.
"""

import pathlib
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import fastassign
from fastassign.errors import Mismatch, NotFound
from support.differential import (
    LIBRARIES,
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
    twins,
    twins_of,
)
from support.models import chain, compiled, functional, nested, sequential, subclassed, with_own_weights


@pytest.fixture(params=["keras", "tf_keras"])
def k(request):
    return LIBRARIES[request.param]


def test_longer_file(k, copies, tmp_path):  # row 30, bug B7: surplus weights of the file are reported
    path = saved(lambda: chain(k, 4, 4, 4), tmp_path / "x.weights.h5")
    done = check(lambda: chain(k, 4, 4), path)
    assert done.stock.error is None and done.report.assigned == 4
    assert sorted(done.report.unexpected) == ["layers/dense_2/vars/0", "layers/dense_2/vars/1"]
    assert copies is None or min(copies) > 0


@pytest.mark.parametrize("skip", [False, True])
def test_shorter_file(k, skip, tmp_path):  # rows 31, 32
    path = saved(lambda: chain(k, 4, 4), tmp_path / "x.weights.h5")
    done = check(lambda: chain(k, 4, 4, 4, 4), path, skip_mismatch=skip)
    if skip:
        assert len(done.ours.warned) == (1 if k is keras else 2)
        assert done.report.assigned == 4 and len(done.report.missing) == 4
    else:
        # Stock assigned the first two layers before it raised.
        assert done.ours.error.hint and differences(snapshot(done.stock_model), snapshot(done.our_model))


@pytest.mark.parametrize("skip", [False, True])
def test_shapes(k, skip, copies, tmp_path):  # row 35
    path = saved(lambda: chain(k, 4, 3, 2), tmp_path / "x.weights.h5")
    done = check(lambda: chain(k, 4, 5, 2), path, skip_mismatch=skip)
    assert (done.ours.error is None) == skip
    if not skip:
        assert differences(snapshot(done.stock_model), snapshot(done.our_model))


@pytest.mark.parametrize("skip", [False, True])
def test_second_variable_does_not_fit(k, skip, tmp_path):
    """When an object fails, stock has assigned its earlier variables already; with skip_mismatch they stay assigned."""
    path = saved(lambda: chain(k, 4, names="p"), tmp_path / "x.weights.h5")
    with h5py.File(path, "r+") as file:
        del file["layers/dense/vars/1"]
        file["layers/dense/vars/1"] = np.zeros(7, np.float32)
    check(lambda: chain(k, 4, names="p"), path, skip_mismatch=skip)


@needs_keras_3_15
@pytest.mark.parametrize("skip", [False, True])
def test_wrong_keys(k, skip, tmp_path):
    """The right number of datasets under other names."""
    path = saved(lambda: chain(k, 4, names="p"), tmp_path / "x.weights.h5")
    with h5py.File(path, "r+") as file:
        file.move("layers/dense/vars/1", "layers/dense/vars/other")
    theirs = stock_load(perturb(fresh(lambda: chain(k, 4, names="p")), 0.5), path, skip_mismatch=skip)
    model = perturb(fresh(lambda: chain(k, 4, names="p")), 0.5)
    before = snapshot(model)
    ours = our_load(model, path, skip_mismatch=skip)
    if k is keras:
        assert text_of(ours.error) == text_of(theirs.error) if not skip else ours.warned == theirs.warned
    elif not skip:  # tf_keras shows h5py's own KeyError
        assert isinstance(ours.error, Mismatch) and isinstance(theirs.error, KeyError)
    if not skip:
        assert differences(snapshot(model), before) == []


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_bias_removed(k, suffix, tmp_path):
    path = saved(lambda: chain(k, 4, 4, use_bias=False), tmp_path / f"x{suffix}")
    for skip in (False, True):
        check(lambda: chain(k, 4, 4), path, skip_mismatch=skip)
        check(lambda: chain(k, 4, 4, use_bias=False), path, skip_mismatch=skip)


@needs_keras_3_15
def test_arguments_of_keras3(tmp_path):  # row 44
    def build():
        return chain(keras, 4, names="p")

    paths = [saved(build, tmp_path / f"x{suffix}") for suffix in (".weights.h5", ".keras", ".h5")]
    for path in paths[:2]:
        check(build, path, by_name=True)
    for path in paths[1:]:
        check(build, path, skip=lambda model: [model.layers[0]])
    for name in ("x.ckpt", "x", "x.npz", "x.hdf"):
        check(build, tmp_path / name)


def test_objects_to_skip(tmp_path):  # row 46
    def build():
        return chain(keras, 4, 4, names="pq")

    path = saved(build, tmp_path / "x.weights.h5")
    done = check(build, path, skip=lambda model: [model.layers[1]])
    assert done.report.assigned == 2 and done.report.missing == ("chain/q/kernel", "chain/q/bias")
    # What is skipped need not fit.
    assert check(lambda: chain(keras, 4, 7, names="pq"), path, skip=lambda m: [m.layers[1]]).stock.error is None
    # Inside a nested model too.
    path = saved(lambda: nested(keras, "sequential")[0], tmp_path / "n.weights.h5")
    done = check(lambda: nested(keras, "sequential")[0], path, skip=lambda m: [m.get_layer("base").layers[0]])
    assert done.report.assigned == 12


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_unbuilt_models(k, suffix, tmp_path):  # row 47
    stack_path = saved(lambda: chain(k, 4, names="p"), tmp_path / f"x{suffix}")
    sub_path = saved(lambda: subclassed(k, "a"), tmp_path / f"y{suffix}")

    def stack():
        return k.Sequential([k.layers.Dense(4, name="p")], name="chain")

    def sub():
        return subclassed(k, "a", build=False)

    for build, path in ((stack, stack_path), (sub, sub_path)):
        assert check(build, path).ours.error is not None
        if suffix == ".weights.h5":
            check(build, path, skip_mismatch=True)


def test_layers_that_do_not_exist_yet(tmp_path):  # row 47, bug B10: tf_keras loads nothing, silently
    class Late(tf_keras.Model):
        def build(self, shape):
            self.late = tf_keras.layers.Dense(4)
            super().build(shape)

        def call(self, x):
            return self.late(x)

    def build():
        model = Late(name="late")
        model(np.zeros((1, 4), np.float32))
        return model

    path = saved(build, tmp_path / "x.weights.h5")
    assert check(build, path).report.assigned == 2
    assert stock_load(Late(name="late"), path).error is None
    with pytest.raises(Mismatch, match="holds nothing for this model") as raised:
        fastassign.load_weights(Late(name="late"), path)
    assert "build the model" in raised.value.hint


@pytest.mark.parametrize("names", [("aa", "bb"), ("xx", "yy"), ("bb", "xx")])
def test_attributes_created_in_another_order(k, names, tmp_path):  # row 49, bug B6
    path = saved(lambda: subclassed(k, *names), tmp_path / "x.weights.h5")
    check(lambda: subclassed(k, *reversed(names)), path)


def test_attributes_renamed(k, tmp_path):  # row 50
    path = saved(lambda: subclassed(k, "xx", "yy"), tmp_path / "x.weights.h5")
    for skip in (False, True):
        done = check(lambda: subclassed(k, "xz", "yz"), path, skip_mismatch=skip)
        assert (done.stock.error is None) == (k is keras or skip)


def test_dict_in_another_order(k, tmp_path):  # row 48, bug B5
    def build(*names):
        parts = {name: k.layers.Dense(4, name=name) for name in names}

        class Holder(k.Model):
            def __init__(self):
                super().__init__(name="holder")
                self.parts = parts

            def call(self, x):
                for name in sorted(self.parts):
                    x = self.parts[name](x)
                return x

        model = Holder()
        model(np.zeros((1, 4), np.float32))
        return model

    path = saved(lambda: build("p", "q"), tmp_path / "x.weights.h5")
    check(lambda: build("q", "p"), path)
    check(lambda: build("p", "q"), path)


@needs_keras_3_15
def test_nested_containers(k, tmp_path):  # row 51
    def build():
        D = k.layers.Dense

        class Holder(k.Model):
            def __init__(self):
                super().__init__(name="holder")
                self.grid = [[D(4), D(4)], [D(4)]]
                self.table = {"one": D(4), "two": [D(4), D(4)]}
                self.pair = (D(4), D(4))

            def call(self, x):
                for layer in [*self.grid[0], *self.grid[1], self.table["one"], *self.table["two"], *self.pair]:
                    x = layer(x)
                return x

        model = Holder()
        model(np.zeros((1, 4), np.float32))
        return model

    path = saved(build, tmp_path / "x.weights.h5")
    assert check(build, path).stock.error is None
    if k is keras:
        # As files from before nested containers were saved.
        with h5py.File(path, "r+") as file:
            found = []
            file.visit(lambda name: found.append(name) if name.endswith("container") else None)
            assert found
            for name in found:
                del file[name]
        for skip in (False, True):
            check(build, path, skip_mismatch=skip)


STATES = {
    "plain": functional,
    "compiled": lambda k: compiled(k, functional(k), slots=False),
    "fit": lambda k: compiled(k, functional(k)),
    "sgd": lambda k: compiled(k, functional(k), "sgd"),
}


@pytest.mark.parametrize("loading", STATES)
@pytest.mark.parametrize("saving", STATES)
def test_states_of_the_optimizer(k, saving, loading, tmp_path):  # row 67
    check(twins_of(STATES[loading], k), saved(twins_of(STATES[saving], k), tmp_path / "x.weights.h5"))


def test_metrics_of_a_fitted_model(k, tmp_path):  # row 67: tf_keras raises
    def made():
        return compiled(k, chain(k, 3, names="p"), "sgd")

    def fitted():
        model = made()
        model.fit(np.zeros((2, 4), "f4"), np.zeros((2, 3), "f4"), verbose=0)
        return model

    both = {"made": twins(made), "fitted": twins(fitted)}
    for saving, loading in (("made", "fitted"), ("fitted", "made"), ("fitted", "fitted")):
        path = saved(both[saving], tmp_path / "x.weights.h5")
        for skip in (False, True):
            check(both[loading], path, skip_mismatch=skip)


def test_top_level_weights(k, copies, tmp_path):
    path = saved(lambda: with_own_weights(k, (2,), (3,), ()), tmp_path / "x.weights.h5")
    assert check(lambda: with_own_weights(k, (2,), (3,), ()), path).stock.error is None
    assert copies is None or min(copies) > 0
    for shapes in (((2,), (3,)), ((2,), (4,), ())):
        for skip in (False, True):
            check(lambda s=shapes: with_own_weights(k, *s), path, skip_mismatch=skip)


def test_file_of_tensorflow_2_12(tmp_path):
    """Before Keras 3 the layers were saved as `_layer_checkpoint_dependencies`."""
    path = saved(lambda: chain(keras, 4, 4), tmp_path / "x.weights.h5")
    with h5py.File(path, "r+") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    assert check(lambda: chain(keras, 4, 4), path).report.assigned == 4


def test_legacy_file_under_a_keras3_name(k, tmp_path):
    path = saved(lambda: chain(k, 4, names="p"), tmp_path / "x.h5")
    path = path.rename(tmp_path / "x.weights.h5")
    done = check(lambda: chain(k, 4, names="p"), path)
    assert "legacy" in done.ours.error.hint


def test_keras3_file_under_a_legacy_name(k, tmp_path):
    saved(lambda: chain(k, 4, names="p"), tmp_path / "x.weights.h5").rename(tmp_path / "x.h5")
    assert "*.weights.h5" in check(lambda: chain(k, 4, names="p"), tmp_path / "x.h5").ours.error.hint


def test_sharded_files_are_not_supported(tmp_path):  # rows 5 to 7
    with pytest.raises(NotImplementedError, match="sharded"):
        fastassign.load_weights(fresh(lambda: chain(keras, 4)), tmp_path / "x.weights.json")


def test_tensorflow_checkpoints_are_not_supported(tmp_path):
    model = fresh(lambda: chain(tf_keras, 4))
    model.save_weights(str(tmp_path / "x"))
    with pytest.raises(NotImplementedError, match="checkpoint"):
        fastassign.load_weights(model, tmp_path / "x")


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_kinds_of_path(k, kind, tmp_path):  # row 75
    path = saved(lambda: chain(k, 4), tmp_path / "x.weights.h5")
    path.chmod(0o400)
    model = perturb(fresh(lambda: chain(k, 4)), 0.5)
    assert fastassign.load_weights(model, kind(path)).assigned == 2
    path.chmod(0o600)
    h5py.File(path, "r+").close()  # nothing holds it open


@pytest.mark.parametrize("name", ["x.weights.h5", "x.h5", "x.keras"])
def test_missing_file(k, name, tmp_path):  # row 63
    model = fresh(lambda: chain(k, 4))
    theirs = stock_load(model, tmp_path / name)
    assert isinstance(theirs.error, FileNotFoundError)
    with pytest.raises(NotFound):
        fastassign.load_weights(model, tmp_path / name)


def short(k):
    return chain(k, 4)


@pytest.mark.parametrize("name", ["x.weights.h5", "x.h5", "x.keras"])
@pytest.mark.parametrize("content", ["empty", "garbage", "half"])
def test_damaged_file(k, name, content, tmp_path):  # row 63
    whole = saved(twins_of(short, k), tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes({"empty": b"", "garbage": b"abc" * 1000, "half": whole[: len(whole) // 2]}[content])
    model = perturb(twins_of(short, k)[0], 0.5)
    before = snapshot(model)
    theirs = stock_load(model, tmp_path / name)
    assert theirs.error is not None
    ours = our_load(model, tmp_path / name)
    assert isinstance(ours.error, OSError), repr(ours.error)
    assert differences(snapshot(model), before) == []
    if content == "half" and not name.endswith(".keras"):
        assert str(ours.error) == str(theirs.error)


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_text_in_place_of_numbers(k, suffix, tmp_path):  # row 63
    path = saved(lambda: chain(k, 4, names="p"), tmp_path / f"x{suffix}")
    with h5py.File(path, "r+") as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        del file[found[0]]
        file[found[0]] = np.array([[b"abc"] * 4] * 4)
    model = perturb(fresh(lambda: chain(k, 4, names="p")), 0.5)
    before = snapshot(model)
    assert stock_load(model, path).error is not None
    perturb(model, 0.5)
    ours = our_load(model, path)
    assert isinstance(ours.error, ValueError) and differences(snapshot(model), before) == []


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize("form", ["gzip", "shuffle", "fletcher", "chunked", "big", "fill", "latest", "userblock"])
def test_forms_of_hdf5(k, form, suffix, tmp_path):  # row 61
    if suffix == ".keras" and form == "userblock":
        suffix = ".weights.h5"
    path = saved(twins_of(sequential, k), tmp_path / ("x.h5" if suffix == ".h5" else "x.weights.h5"))
    target = tmp_path / f"copy{suffix}"
    plain = tmp_path / f"copy{path.name[1:]}"
    options = {"gzip": {"compression": "gzip"}, "shuffle": {"compression": "gzip", "shuffle": True},
               "fletcher": {"fletcher32": True}, "chunked": {"chunks": True}}.get(form, {})  # fmt: skip
    created = {"latest": {"libver": "latest"}, "userblock": {"userblock_size": 512}}.get(form, {})
    with h5py.File(path) as source, h5py.File(plain, "w", **created) as copy:

        def rewrite(name, item):
            if isinstance(item, h5py.Group):
                made = copy.require_group(name)
            elif form == "fill":
                made = copy.create_dataset(name, item.shape, item.dtype, fillvalue=3.25)
            else:
                values = item[()].astype(">f8") if form == "big" else item[()]
                made = copy.create_dataset(name, data=values, **(options if item.shape else {}))
            for key, value in item.attrs.items():
                made.attrs[key] = value

        rewrite("/", source)
        source.visititems(rewrite)
    if suffix == ".keras":
        saved(twins_of(sequential, k), tmp_path / "y.keras")
        with zipfile.ZipFile(tmp_path / "y.keras") as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                new.writestr(name, plain.read_bytes() if name == "model.weights.h5" else old.read(name))
    done = check(twins_of(sequential, k), target)
    assert done.stock.error is None and done.report.assigned == 8
    if form == "fill":
        assert all(np.all(w.numpy() == 3.25) for w in done.our_model.weights)


def test_keras_archive_that_is_compressed(k, tmp_path):
    saved(twins_of(sequential, k), tmp_path / "y.keras")
    with zipfile.ZipFile(tmp_path / "y.keras") as old, zipfile.ZipFile(tmp_path / "x.keras", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert check(twins_of(sequential, k), tmp_path / "x.keras").report.assigned == 8


@pytest.mark.parametrize("atomic", [False, True])
def test_atomic_gives_the_same(k, atomic, tmp_path):
    path = saved(lambda: compiled(k, functional(k)), tmp_path / "x.weights.h5")
    check(lambda: compiled(k, functional(k)), path, loader=lambda model, where: our_load(model, where, atomic=atomic))


def test_only_a_layer(tmp_path):
    """A single layer is saved and loaded like a model."""

    def build():
        layer = keras.layers.Dense(3, name="alone")
        layer.build((None, 2))
        return layer

    source = fill(fresh(build))
    with quiet():
        keras.src.saving.saving_lib.save_weights_only(source, tmp_path / "x.weights.h5")
    layer = perturb(fresh(build), 0.5)
    fastassign.load_weights(layer, tmp_path / "x.weights.h5")
    assert differences(snapshot(layer), snapshot(source)) == []


def test_same_class_names_count(k, tmp_path):
    """A layer reached by an attribute first counts in Keras 3's container names, and not in tf_keras'."""
    path = saved(lambda: subclassed(k, "aa", "zz", "bb"), tmp_path / "x.weights.h5")
    with h5py.File(path) as file:
        assert sorted(file["layers"]) == (["dense_1"] if k is keras else sorted(file["layers"]))
    assert check(lambda: subclassed(k, "aa", "zz", "bb"), path).stock.error is None
