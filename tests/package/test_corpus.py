"""Files that real Keras versions wrote, where FASTASSIGN_CORPUS names a folder of them."""

import io
import os
import zipfile
from functools import cache
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign
from support.differential import check, quiet, twins

FOLDER = os.environ.get("FASTASSIGN_CORPUS")
FILES = sorted(Path(FOLDER).iterdir()) if FOLDER else []
WEIGHT_FILES = [path for path in FILES if path.suffix in {".h5", ".hdf5", ".hd5", ".keras"}]

pytestmark = pytest.mark.skipif(not FOLDER, reason="FASTASSIGN_CORPUS names no folder of real Keras files")


def named(files):
    return pytest.mark.parametrize("path", files, ids=lambda path: path.name)


def opened(path):
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    return h5py.File(path)


@named(WEIGHT_FILES)
def test_every_dataset(path):
    """The catalog lists what h5py lists, and reads the same bytes."""
    catalog = fastassign.inspect(path)
    with opened(path) as file:
        found = {}
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        assert sorted(catalog) == sorted(found)
        for name, dataset in found.items():
            values = catalog[name].read()
            assert values.shape == dataset.shape and values.dtype == dataset.dtype
            assert values.tobytes() == dataset[()].tobytes()
        assert catalog.nbytes == sum(dataset.nbytes for dataset in found.values())


@cache
def kind_of(path):
    """Return "whole", "weights" or "other"."""
    if path.suffix == ".keras":
        return "whole"
    with h5py.File(path) as file:
        if "model_config" in file.attrs:
            return "whole"
        return "weights" if "layer_names" in file.attrs else "other"


def of_kind(kind):
    return [path for path in WEIGHT_FILES if kind_of(path) == kind]


def loaded_twice(k, path):
    """Return two models that stock made of a file, or the reason why it can't."""
    try:
        with quiet():
            return twins(lambda: k.models.load_model(path, compile=False)), None
    except Exception as error:  # noqa: BLE001 - whatever stock says of a file of another version
        return None, f"{type(error).__name__}: {str(error)[:80]}"


@pytest.mark.slow
@pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
@named(of_kind("whole"))
def test_whole_models(path, k):
    """`load_weights` of a whole model into the model that stock makes of it."""
    pair, reason = loaded_twice(k, path)
    if pair is None:
        pytest.skip(f"stock can't: {reason}")
    done = check(pair, path)
    assert done.stock.error is None
    assert done.report.assigned == len(done.our_model.weights)


def mirror(k, path):
    """A function that builds a model of as many layers, with variables of the same shapes, as a legacy file has."""
    with h5py.File(path) as file:
        group = file.get("model_weights", file)
        layers = []
        for name in group.attrs["layer_names"]:
            layer = group[name]
            names = [n.decode() if isinstance(n, bytes) else n for n in layer.attrs["weight_names"]]
            layers.append([(layer[n].shape, layer[n].dtype.name) for n in names])

    class Mirror(k.layers.Layer):
        def __init__(self, specs, **kwargs):
            super().__init__(**kwargs)
            for i, (shape, dtype) in enumerate(specs):
                self.add_weight(shape=shape, dtype=dtype, name=f"w{i}", initializer="zeros")

        def call(self, x):
            return x

    def build():
        made = [Mirror(specs, name=f"mirror_{i}") for i, specs in enumerate(layers)]
        return k.Sequential([k.Input((1,)), *made], name="mirror")

    return build


@pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
@named([*of_kind("weights"), *of_kind("whole")])
def test_variables_of_the_same_shapes(path, k, tmp_path):
    if path.suffix == ".keras":
        pytest.skip("not a legacy file")
    if path.suffix not in {".h5", ".hdf5"}:  # Keras 3 goes by the name
        copy = tmp_path / f"{path.stem}.h5"
        copy.write_bytes(path.read_bytes())
        path = copy
    done = check(twins(mirror(k, path)), path)
    assert done.stock.error is None and not done.report.unexpected and not done.report.missing
    assert np.all([v.numpy().size for v in done.our_model.weights])


@named(of_kind("weights"))
def test_by_name_into_other_names(path, tmp_path):
    """By name nothing fits, and that is said."""
    if path.suffix not in {".h5", ".hdf5"}:
        pytest.skip("tested by its name above")
    model = twins(mirror(keras, path))[0]
    with pytest.raises(fastassign.errors.Mismatch, match="matched nothing"):
        fastassign.load_weights(model, path, by_name=True)


@named(of_kind("other"))
def test_files_that_are_not_of_keras(path):
    def build():
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="d")], name="m")

    if path.suffix == ".h5":
        assert "found 0 saved layers" in str(check(build, path).ours.error)


class Spline:
    """Arguments and weights of a layer that one of the files has from elsewhere."""

    def __init__(self, n_bases=10, **arguments):
        own = {"spline_degree", "share_splines", "l2_smooth", "l2", "use_bias", "bias_initializer"}
        super().__init__(**{key: value for key, value in arguments.items() if key not in own})
        self.n_bases = n_bases

    def build(self, shape):
        self.kernel = self.add_weight(shape=(self.n_bases, shape[-1]), name="kernel")
        self.built = True

    def call(self, inputs):
        return inputs


@cache
def model_of(path, library):
    k = keras if library == "keras" else tf_keras
    reports = []
    custom = {"SplineWeight1D": type("SplineWeight1D", (Spline, k.layers.Layer), {})}
    options = fastassign.LoadOptions(library=library, on_report=reports.append)
    with quiet():
        return fastassign.load_model(path, custom_objects=custom, options=options), reports[0]


WHOLE_HDF5 = [path for path in of_kind("whole") if path.suffix != ".keras"]


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@named(WHOLE_HDF5)
def test_load_model(path, library):
    """Every array of the file is in the model or its optimizer, but for stand-ins that say nothing."""
    model, report = model_of(path, library)
    weights = [np.asarray(weight).tobytes() for weight in model.weights]
    with h5py.File(path) as file:
        saved = []
        file["model_weights"].visititems(lambda _, item: saved.append(item) if isinstance(item, h5py.Dataset) else None)
        for item in saved:
            weights.remove(item[()].tobytes())
        assert weights == []
        assert report.assigned == len(saved)
        for name in report.optimizer_left:
            assert file["optimizer_weights"][name].shape == (1,)
        if "optimizer_weights" in file:
            variables = model.optimizer.variables
            slots = [np.asarray(v) for v in (variables() if callable(variables) else variables)]
            kept = [file["optimizer_weights"][name][()] for name in file["optimizer_weights"].attrs["weight_names"]]
            for array in kept:
                if array.shape not in {(1,), ()}:
                    assert any(np.array_equal(array, slot) for slot in slots)


def predicted(model, inputs):
    """Return what a model computes; ``None`` where TensorFlow's own ops can't."""
    try:
        return model(inputs, training=False)
    except tf.errors.InvalidArgumentError as error:
        if "only supports NHWC" not in str(error):
            raise
        return None


@pytest.mark.slow
@named(WHOLE_HDF5)
def test_predictions(path):
    """Keras 3 computes what tf_keras computes."""
    ours, theirs = model_of(path, "keras")[0], model_of(path, "tf_keras")[0]
    rng = np.random.default_rng(0)
    # 11,000: one of the models crops 10,000 steps.
    shapes = [(2, *[size or 11_000 for size in each.shape[1:]]) for each in theirs.inputs]
    inputs = [
        (rng.random(shape) * 5).astype(each.dtype.name) for shape, each in zip(shapes, theirs.inputs, strict=True)
    ]
    found = [predicted(model, inputs if len(inputs) > 1 else inputs[0]) for model in (ours, theirs)]
    if found[1] is None:  # Keras 3 transposes by itself
        pytest.skip("tf_keras can't predict: without oneDNN TensorFlow does not compute channels first on a processor")
    one, other = ([np.asarray(each) for each in (out if isinstance(out, (list, tuple)) else [out])] for out in found)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@named([path for path in of_kind("whole") if path.suffix == ".keras"])
def test_archives(path):
    """With the state of the optimizer; seeds are in no file."""
    model, _ = model_of(path, "keras")
    with quiet():
        stock = keras.models.load_model(path)
    for ours, theirs in ((model.weights, stock.weights), (model.optimizer.variables, stock.optimizer.variables)):
        assert [np.asarray(v).tobytes() for v in ours] == [np.asarray(v).tobytes() for v in theirs]
