"""Loads of files of one structure: the plan of the load before serves the next one, and every load is exact."""

import h5py
import numpy as np
import pytest
import tensorflow as tf

import fastassign as fa
from support import differential as d
from support import models
from support.loading import (
    AGAIN,
    BOTH,
    KEPT,
    LONG,
    MADE,
    OTHER_STRUCTURE,
    TOGETHER,
    compare,
    compress,
    in_background,
    trained,
    values,
)


def chunk(path):
    """Store every matrix in compressed chunks, which h5py decodes."""
    with h5py.File(path, "r+") as file:
        matrices = []
        file.visititems(lambda key, item: matrices.append(key) if getattr(item, "ndim", 0) > 1 else None)
        for key in matrices:
            array = file[key][()]
            del file[key]
            file.create_dataset(key, data=array, chunks=True, compression="gzip", shuffle=True)
    return path


KINDS = {
    "weights": ("m.weights.h5", None, [MADE, KEPT, KEPT, KEPT]),
    "legacy": ("m.h5", None, [MADE, KEPT, KEPT, KEPT]),
    "whole": ("m.whole.h5", None, [MADE, KEPT, KEPT, KEPT]),
    "archive": ("m.keras", None, [MADE, KEPT, KEPT, KEPT]),
    "compressed": ("m.keras", compress, [MADE, *[AGAIN + "the weights of the file before were compressed"] * 3]),
    "chunked": ("m.weights.h5", chunk, [MADE, KEPT, OTHER_STRUCTURE, OTHER_STRUCTURE]),
    "chunked-legacy": ("m.h5", chunk, [MADE, KEPT, OTHER_STRUCTURE, OTHER_STRUCTURE]),
}


def save_trained(k, path, seed):
    """Save one with random values; whole models hold the learning rate as text, which takes its own length."""
    model = d.fill(d.twins_of(trained, k)[0], seed)
    model.optimizer.learning_rate = 0.5
    with d.quiet():
        return d.save(model, path)


class TestSameStructure:
    @BOTH
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_load_is_exact(self, k, kind, tmp_path):
        name, rewrite, remarks = KINDS[kind]
        paths = []
        for seed in (1, 2):
            (tmp_path / str(seed)).mkdir()
            path = save_trained(k, tmp_path / str(seed) / name, seed)
            paths.append(rewrite(path) if rewrite else path)
        model, stock = d.twins_of(trained, k)
        with fa.Loader(model) as loader:
            background = in_background(loader)
            found = [
                compare(loader, model, stock, path, load=load).plan
                for path, load in zip((paths[0], paths[0], paths[1], paths[0]), (None, background) * 2, strict=True)
            ]
        assert found == remarks

    @BOTH
    @pytest.mark.parametrize("family", ["embedding", "attention", "convolutions", "group_norm"])
    def test_every_load_is_exact_for_all_kinds_of_layers(self, k, family, tmp_path):
        build = models.zoo(k)[family]
        paths = [d.saved(build, tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        model, stock = d.twins(build)
        with fa.Loader(model, options=TOGETHER) as loader:
            found = [compare(loader, model, stock, paths[i]).plan for i in (0, 1, 0)]
        assert found == [MADE, KEPT, KEPT]

    def test_every_dtype_and_shape(self, tmp_path):
        """As plain variables, on both devices; one is embedded, so that TensorFlow copies it when it is read."""
        shapes = [(), (0,), (1,), (5,), (1, 7), (7, 1), (2, 1, 3), (64, 300), (400, 200)]
        dtypes = ["float16", "float32", "float64", "bfloat16", "int8", "int32", "int64", "uint8", "bool", "complex64"]
        variables = {}
        for number, dtype in enumerate(dtypes):
            for shape in shapes:
                with tf.device(f"CPU:{number % 2}"):
                    variables[f"{dtype}{shape}"] = tf.Variable(tf.zeros(shape, dtype))
        expected = {}
        for seed in (1, 2):
            rng = np.random.default_rng(seed)
            with h5py.File(tmp_path / f"{seed}.h5", "w") as file:
                for name, variable in variables.items():
                    array = d.random_values(tuple(variable.shape), variable.dtype.as_numpy_dtype, rng)
                    expected[seed, name] = array.tobytes()
                    file[name] = array.view("V2") if variable.dtype == "bfloat16" else array
        with fa.Loader(variables) as loader:
            for turn, seed in enumerate((1, 2, 1, 1, 2)):
                tf.gather(variables["float32(400, 200)"], [3, 5])
                report = (in_background(loader) if turn % 2 else loader.load)(tmp_path / f"{seed}.h5")
                assert report.plan == (KEPT if turn else MADE)
                for name, variable in variables.items():
                    assert variable.numpy().tobytes() == expected[seed, name], (seed, name)

    def test_what_was_read_before_stays(self, files, contents, model):
        with fa.Loader(model) as loader:
            loader.load(files[1])
            held = [variable._value.read_value() for variable in model.variables]
            for seed in (2, 1, 2):
                loader.load(files[seed])
                assert values(model) == contents[seed]
                assert [tensor.numpy().tobytes() for tensor in held] == contents[1]

    def test_the_report(self, files, model):
        with fa.Loader(model) as loader:
            reports = [loader.load(files[1]), loader.load(files[2]), loader.load_async(files[1]).result(LONG)]
        assert [report.plan for report in reports] == [MADE, KEPT, KEPT]
        assert [report.file for report in reports] == [str(files[seed]) for seed in (1, 2, 1)]
        for report in reports:
            assert report.assigned == sum(report.routes.values()) == 6
            assert report.nbytes == sum(map(len, values(model)))
            assert "index" in report.seconds
            assert "total" in report.seconds
        assert "match" not in reports[1].seconds
        assert "kept" in str(reports[1])

    def test_two_loaders_of_one_model(self, files, contents, model):
        with fa.Loader(model) as one, fa.Loader(model, options=TOGETHER) as other:
            for seed in (1, 2, 2, 1):
                for loader in (one, other):
                    loader.load(files[seed])
                    assert values(model) == contents[seed]

    def test_others_may_load_in_between(self, files, contents, model):
        with fa.Loader(model) as loader:
            for first, second in ((1, 2), (2, 1), (1, 1)):
                loader.load(files[first])
                fa.load_weights(model, files[second])
                assert values(model) == contents[second]
                model.load_weights(files[first])
                assert values(model) == contents[first]
