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
import tf_keras
from differential import check, quiet, twins

import fastassign

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
