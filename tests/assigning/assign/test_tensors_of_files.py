"""``fastassign.assign``, eagerly: tensors of files."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tf_keras

import fastassign as fa
from support.pairs import COMPOSITE, ORDINARY, SHAPE, holds, kernel, read, values, variable


@pytest.mark.parametrize("name", ["kernel", "double", "opaque", "big_endian"])
def test_tensor_of_a_file(name, files):
    made = variable(dtype="bfloat16" if name == "opaque" else "float32")
    report = fa.assign([(made, fa.inspect(files[0])[f"a/{name}"])])
    wanted = values(dtype="float64").astype(np.float32) if name == "double" else values()
    assert holds(made, values(dtype=ml_dtypes.bfloat16) if name == "opaque" else wanted)
    assert report.file == str(files[0])
    assert len(report.cast) == (name in {"double", "big_endian"})  # the second is another dtype to HDF5


@pytest.mark.parametrize("shape", [("gzip", (50, 40)), ("scalar", ()), ("empty", (0, 4)), ("large", (300, 200))])
def test_tensors_of_other_shapes(shape, files):
    name, dims = shape
    made = variable(dims)
    fa.assign([(made, fa.inspect(files[1])[f"a/{name}"])])
    assert holds(made, np.asarray(np.float32(2)) if name == "scalar" else values(dims, seed=1))


@pytest.mark.parametrize("kind", [*ORDINARY, *COMPOSITE])
def test_tensor_for_variables_of_every_kind(kind, files):
    made = {**ORDINARY, **COMPOSITE}[kind]()
    fa.assign([(made, fa.inspect(files[0])["a/kernel"])])
    assert holds(made, values())


def test_tensor_for_a_Keras_variable_is_cast_by_numpy(files):
    made = keras.Variable(np.zeros(SHAPE), dtype="float16")
    fa.assign([(made, fa.inspect(files[0])["a/double"])])
    assert holds(made, values(dtype="float64").astype(np.float16))


def test_arrays_and_tensors_of_two_files(files):
    made = [variable(name=name) for name in "abcd"]
    one, two = map(fa.inspect, files)
    report = fa.assign(
        [(made[0], one["a/kernel"]), (made[1], values(seed=7)), (made[2], two["a/kernel"]), (made[3], one["a/double"])]
    )
    for each, wanted in zip(made, (values(), values(seed=7), values(seed=1), read(made[3])), strict=True):
        assert holds(each, wanted)
    assert holds(made[3], values(dtype="float64").astype(np.float32))
    assert report.assigned == 4 and sum(report.routes.values()) == 4
    assert report.nbytes == 5 * values().nbytes
    assert report.file == f"{files[0]}, {files[1]}, memory"
    assert report.cast == ("d:0: <f8 to float32",)


def test_later_values_win_among_files_and_arrays(files):
    entries = [fa.inspect(path)["a/kernel"] for path in files]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        made = variable()
        candidates = [*entries, values(seed=7)]
        fa.assign([(made, candidates[which]) for which in order])
        assert holds(made, (values(), values(seed=1), values(seed=7))[order[-1]])


def test_one_tensor_for_two_variables(files):
    made = [variable(), kernel(tf_keras)]
    catalog = fa.inspect(files[0])
    fa.assign([(each, catalog["a/kernel"]) for each in made])
    assert all(holds(each, values()) for each in made)


def test_tensor_of_an_archive(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="d")])
    model.save(tmp_path / "m.keras")
    made = variable()
    fa.assign([(made, fa.inspect(tmp_path / "m.keras")["dense/vars/0"])])
    assert holds(made, read(model.layers[0].kernel))


def test_file_that_changed_before(tmp_path, files):
    path = tmp_path / "x.h5"
    path.write_bytes(files[0].read_bytes())
    entry = fa.inspect(path)["a/kernel"]
    path.write_bytes(files[1].read_bytes())
    made = variable()
    with pytest.raises(fa.Changed) as caught:
        fa.assign([(made, entry)])
    assert not read(made).any()
    assert getattr(caught.value, "assigned", ()) == ()


def test_second_file_that_changed_before(tmp_path, files):
    """Nothing has changed by then; or the error says what."""
    path = tmp_path / "x.h5"
    path.write_bytes(files[1].read_bytes())
    first, second = variable(name="first"), variable(name="second")
    pairs = [(first, fa.inspect(files[0])["a/kernel"]), (second, fa.inspect(path)["a/kernel"])]
    path.write_bytes(files[0].read_bytes())
    with pytest.raises(fa.Changed) as caught:
        fa.assign(pairs)
    assert not read(second).any()
    assert getattr(caught.value, "assigned", ()) == (("first:0",) if read(first).any() else ())
