"""Stored dtypes and the variables' dtypes: every pair is cast as stock casts it, or refused as stock refuses.

Rows and bugs are numbered as in docs/internals/keras.md, sections 9 and 3.
"""

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign
from support.differential import (
    LIBRARIES,
    TENSORFLOW_VERSION,
    check,
    differences,
    fill,
    fresh,
    needs_keras_3_15,
    our_load,
    perturb,
    saved,
    snapshot,
    stock_load,
    twins,
    value_of,
)
from support.models import holder

STORED = ["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool",
          ">f4", ">i4", "uint64"]  # fmt: skip
TARGETS = ["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"]


@pytest.fixture(params=["keras", "tf_keras"], scope="module")
def k(request):
    return LIBRARIES[request.param]


# Values that casts treat differently: fractions, signs, overflow of small types, rounding of wide ones.
VALUES = [0.0, 1.0, -1.0, 2.5, -3.75, 100.0, 127.0, 128.0, 255.0, 300.0, 65504.0, 70000.0, 1 / 3, 16777217.0, 1e-8]


def stored_values(dtype):
    if dtype == "bfloat16":
        return np.array(VALUES, ml_dtypes.bfloat16)
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return np.array([v > 1 for v in VALUES])
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return np.array([min(max(int(v), info.min), info.max) for v in VALUES], kind)
    with np.errstate(over="ignore"):
        return np.array(VALUES).astype(kind)


def write(path, values, marked=False):
    with h5py.File(path, "w") as file:
        if path.name.endswith(".weights.h5"):
            file.create_group("vars")
            name, group = "0", file.create_group("layers/holder/vars")
        else:
            file.attrs["layer_names"] = [b"holder"]
            file.attrs["keras_version"] = b"2.9.0"
            name, group = "holder/v0:0", file.create_group("holder")
            group.attrs["weight_names"] = [name.encode()]
        opaque = values.dtype == ml_dtypes.bfloat16
        group[name] = values.view("V2") if opaque else values
        if opaque and marked:
            group[name].attrs["dtype"] = "bfloat16"
    return path


@pytest.fixture(scope="module")
def models(k):
    return {dtype: twins(lambda d=dtype: holder(k, ((len(VALUES),), d))) for dtype in TARGETS}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
@pytest.mark.parametrize("stored", STORED)
def test_matrix(k, models, stored, suffix, tmp_path):  # rows 59, 60
    path = write(tmp_path / f"x{suffix}", stored_values(stored), marked=True)
    wrong = []
    for dtype, pair in models.items():
        if stored == "bfloat16" and not (k is keras and suffix == ".weights.h5"):
            continue  # tested below
        try:
            done = check(pair, path)
            same = stored == dtype
            assert bool(done.report.cast) != same, "the report names the variables that were cast"
        except Exception as error:  # noqa: BLE001 - all pairs are shown together
            wrong.append((dtype, repr(error)[:300]))
    assert wrong == []


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
@pytest.mark.parametrize("marked", [False, True])
def test_bfloat16(k, suffix, marked, tmp_path):  # row 60, bug B13: only the marked form in Keras 3 files loads
    values = stored_values("bfloat16")
    path = write(tmp_path / f"x{suffix}", values, marked=marked)
    model = perturb(fresh(lambda: holder(k, ((len(VALUES),), "bfloat16"))), 0.5)
    theirs = stock_load(model, path)
    assert (theirs.error is None) == (k is keras and suffix == ".weights.h5" and marked), "stock has learned this"
    perturb(model, 0.5)
    fastassign.load_weights(model, path)
    assert value_of(model.layers[-1].weights[0]).tobytes() == values.tobytes()


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_opaque_bytes_without_meaning(k, models, suffix, tmp_path):
    path = write(tmp_path / f"x{suffix}", stored_values("bfloat16"))
    for dtype in ("float32", "float16", "float64"):
        check(models[dtype], path)
    for dtype in ("int16", "int32", "uint8"):  # stock's text shows the bytes of the first value
        stock, ours = models[dtype]
        before = snapshot(perturb(ours, 1))
        assert isinstance(stock_load(stock, path).error, ValueError)
        assert isinstance(our_load(ours, path).error, ValueError)
        assert differences(snapshot(ours), before) == []


@pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8(k, dtype, suffix, tmp_path):
    """Stock saves one-byte opaque values without a mark, and then can't load them."""
    values = np.array([0.5, 1, -2, 4], tf.as_dtype(dtype).as_numpy_dtype)
    with h5py.File(write(tmp_path / f"x{suffix}", np.zeros(4, "f4")), "r+") as file:
        key = "layers/holder/vars/0" if suffix == ".weights.h5" else "holder/holder/v0:0"
        del file[key]
        file[key] = values.view("V1")
    model = fresh(lambda: holder(k, ((4,), dtype)))
    perturb(model, 1)
    assert stock_load(model, tmp_path / f"x{suffix}").error is not None
    fastassign.load_weights(model, tmp_path / f"x{suffix}")
    assert value_of(model.layers[-1].weights[0]).tobytes() == values.tobytes()


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 4), (1, 1, 1), (1,)])
def test_small_shapes(k, suffix, shape, tmp_path):
    def build():
        return holder(k, (shape, "float32"), ((2,), "float32"), (shape, "int32"), ((), "bool"))

    assert check(build, saved(build, tmp_path / f"x{suffix}")).report.assigned == 4


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_shapes_of_the_same_size(k, suffix, tmp_path):
    """Nothing is broadcast or reshaped."""
    for stored, wanted in (((4,), (2, 2)), ((1,), ()), ((), (1,)), ((2, 3), (3, 2)), ((1, 3), (3,)), ((0,), (0, 2))):
        path = saved(lambda s=stored: holder(k, (s, "float32")), tmp_path / f"x{suffix}")
        assert check(lambda w=wanted: holder(k, (w, "float32")), path).ours.error is not None


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_complex_values(k, suffix, tmp_path):
    path = write(tmp_path / f"x{suffix}", np.arange(len(VALUES)) * (1 + 2j))
    check(lambda: holder(k, ((len(VALUES),), "float32")), path)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64", "float16"])
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_policies(k, policy, suffix, tmp_path):  # rows 59, 71
    def build():
        layers = [k.layers.Dense(3, dtype=policy, name="d"), k.layers.BatchNormalization(dtype=policy, name="n")]
        return k.Sequential([k.Input((4,)), *layers], name="m")

    assert check(build, saved(build, tmp_path / f"x{suffix}")).stock.error is None
    # From a plain float32 file too.
    layers = ["d", "n"]

    def plain():
        made = [k.layers.Dense(3, name=layers[0]), k.layers.BatchNormalization(name=layers[1])]
        return k.Sequential([k.Input((4,)), *made], name="m")

    assert check(build, saved(plain, tmp_path / f"y{suffix}")).stock.error is None


def test_autocast_scope_does_not_round(tmp_path):  # row 71: tf_keras rounds the master weight inside such a scope
    from tf_keras.src.mixed_precision.autocast_variable import enable_auto_cast_variables

    def build():
        return tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(3, dtype="mixed_float16", name="d")])

    path = saved(build, tmp_path / "x.h5")
    model = perturb(fresh(build), 0.5)
    wanted = [value_of(w).tobytes() for w in fill(fresh(build)).weights]
    with enable_auto_cast_variables(tf.float16):
        assert stock_load(model, path).error is None
    if TENSORFLOW_VERSION >= (2, 17):  # tf_keras 2.16 does not round yet
        assert [value_of(w).tobytes() for w in model.weights] != wanted, "stock no longer rounds"
    perturb(model, 0.5)
    with enable_auto_cast_variables(tf.float16):
        fastassign.load_weights(model, path)
    assert [value_of(w).tobytes() for w in model.weights] == wanted


@needs_keras_3_15
def test_autocast_scope_of_keras3(tmp_path):
    from keras.src.backend.common.variables import AutocastScope

    def build():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="mixed_float16", name="d")])

    def inside(load):
        def loading(model, path):
            with AutocastScope("float16"):
                return load(model, path)

        return loading

    for suffix in (".h5", ".weights.h5"):
        path = saved(build, tmp_path / f"x{suffix}")
        check(build, path, stock=inside(stock_load), loader=inside(our_load))
