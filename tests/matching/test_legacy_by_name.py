"""Legacy files with ``by_name=True``.

Rows and bugs are numbered as in docs/internals/keras.md, sections 9 and 3.
"""

import h5py
import numpy as np
import pytest
import tf_keras

import fastassign
from fastassign.errors import Mismatch
from support.differential import LIBRARIES, check, differences, fill, fresh, perturb, saved, snapshot, stock_load
from support.models import chain, nested, subclassed, with_own_weights


@pytest.fixture(params=["keras", "tf_keras"])
def k(request):
    return LIBRARIES[request.param]


@pytest.mark.parametrize(
    ("file", "model", "assigned"),
    [("pqr", "pqr", 6), ("pqr", "rpq", 6), ("pqr", "qxy", 2), ("pq", "apbq", 4), ("pqrs", "s", 2)],
)
def test_names_that_both_have(k, file, model, assigned, tmp_path):  # row 39
    path = saved(lambda: chain(k, *[4] * len(file), names=file), tmp_path / "x.h5")
    done = check(lambda: chain(k, *[4] * len(model), names=model), path, by_name=True)
    assert done.report.assigned == assigned
    assert len(done.report.missing) == 2 * len(model) - assigned


def test_no_common_name(k, tmp_path):  # rows 39, bug B11: stock does not say so
    path = saved(lambda: chain(k, 4, names=["dense_1"]), tmp_path / "x.h5")
    model = fresh(lambda: chain(k, 4, names=["dense_7"]))
    before = snapshot(model)
    theirs = stock_load(model, path, by_name=True)
    assert theirs.error is None and not theirs.warned and differences(snapshot(model), before) == []
    with pytest.raises(Mismatch, match="matched nothing") as raised:
        fastassign.load_weights(model, path, by_name=True)
    assert "dense_1" in raised.value.hint and differences(snapshot(model), before) == []


@pytest.mark.parametrize("skip", [False, True])
def test_shapes(k, skip, tmp_path):  # row 40
    path = saved(lambda: chain(k, 4, 3, 2, names="pqr"), tmp_path / "x.h5")
    done = check(lambda: chain(k, 4, 5, 2, names="pqr"), path, by_name=True, skip_mismatch=skip)
    if skip:
        # q: neither fits; r: the kernel does not, the bias does.
        assert len(done.report.skipped) == 3 and done.report.assigned == 3
        assert len(done.ours.warned) + len(done.ours.logged) == 3
    else:
        assert "Shape mismatch in layer #1" in str(done.ours.error)


@pytest.mark.parametrize("skip", [False, True])
def test_counts(k, skip, tmp_path):  # row 41
    path = saved(lambda: chain(k, 4, 4, names="pq", use_bias=False), tmp_path / "x.h5")

    def build():
        layers = [k.layers.Dense(4, use_bias=False, name="p"), k.layers.Dense(4, name="q")]
        return k.Sequential([k.Input((4,)), *layers], name="chain")

    done = check(build, path, by_name=True, skip_mismatch=skip)
    if skip:
        assert done.report.assigned == 1 and len(done.report.skipped) == 1
    else:
        assert "Weight count mismatch for layer #1" in str(done.ours.error)


@pytest.mark.parametrize("skip", [False, True])
def test_layer_without_weights_here(k, skip, tmp_path):
    path = saved(lambda: chain(k, 4, 4, names="pq"), tmp_path / "x.h5")

    def build():
        layers = [k.layers.Dense(4, name="p"), k.layers.Activation("relu", name="q")]
        return k.Sequential([k.Input((4,)), *layers], name="chain")

    check(build, path, by_name=True, skip_mismatch=skip)


def test_layer_without_weights_in_the_file(k, tmp_path):
    def build():
        layers = [k.layers.Dense(4, name="p"), k.layers.Activation("relu", name="q")]
        return k.Sequential([k.Input((4,)), *layers], name="chain")

    for skip in (False, True):
        check(
            lambda: chain(k, 4, 4, names="pq"), saved(build, tmp_path / f"{skip}.h5"), by_name=True, skip_mismatch=skip
        )


@pytest.mark.parametrize("kind", ["functional", "sequential", "composite"])
def test_order_decides_inside(k, kind, tmp_path):  # row 42
    path = saved(lambda: nested(k, kind)[0], tmp_path / "x.h5")
    assert check(lambda: nested(k, kind, named=False)[0], path, by_name=True).report.assigned == 14


def test_automatic_names_cross(k, tmp_path):  # row 43
    path = saved(lambda: chain(k, 4, 4, names=["dense", "dense_1"]), tmp_path / "x.h5")
    done = check(lambda: chain(k, 4, 4, names=["dense_1", "dense"]), path, by_name=True)
    source = fill(fresh(lambda: chain(k, 4, 4, names=["dense", "dense_1"])))
    assert np.array_equal(done.our_model.layers[0].kernel.numpy(), source.layers[1].kernel.numpy())


def test_keras3_file(k, tmp_path):  # row 45
    path = saved(lambda: chain(k, 4, 4), tmp_path / "x.weights.h5")
    done = check(lambda: chain(k, 4, 4), path, by_name=True)
    if k is tf_keras:
        assert done.report.assigned == 4 and done.report.skipped
    else:
        assert "by_name" in str(done.ours.error)


def test_keras3_file_under_a_legacy_name(k, tmp_path):  # bug B11
    saved(lambda: chain(k, 4), tmp_path / "x.weights.h5").rename(tmp_path / "x.h5")
    model = fresh(lambda: chain(k, 4))
    assert stock_load(model, tmp_path / "x.h5", by_name=True).error is None
    with pytest.raises(Mismatch, match="no layer names"):
        fastassign.load_weights(model, tmp_path / "x.h5", by_name=True)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shapes", [((2,),), ((3,),), ((2,), (3,)), ()])
def test_top_level_weights(k, shapes, skip, tmp_path):
    path = saved(lambda: with_own_weights(k, (2,)), tmp_path / "x.h5")
    check(lambda: with_own_weights(k, *shapes), path, by_name=True, skip_mismatch=skip)


def test_unbuilt_models(k, tmp_path):  # row 47
    path = saved(lambda: subclassed(k, "a", "b"), tmp_path / "x.h5")
    unbuilt = fresh(lambda: subclassed(k, "a", "b", build=False))
    theirs = stock_load(unbuilt, path, by_name=True)
    ours = None
    try:
        fastassign.load_weights(unbuilt, path, by_name=True)
    except ValueError as error:
        ours = error
    if theirs.error is None:  # Keras 3 says nothing
        assert isinstance(ours, Mismatch)
    else:
        assert str(ours) == str(theirs.error)


def test_two_layers_of_one_name(k, tmp_path):
    """A model may hold two layers of the same name where no graph forbids it: both take the weights."""
    path = saved(lambda: chain(k, 4, 4, names="pq"), tmp_path / "x.h5")

    def build():
        model = subclassed(k, "a", "b", build=False)
        for layer in (model.a, model.b):
            setattr(layer, "_name" if k is tf_keras else "name", "p")
        model(np.zeros((1, 4), np.float32))
        return model

    assert check(build, path, by_name=True).report.assigned == 4


def test_whole_model_file(k, tmp_path):
    path = saved(lambda: chain(k, 4, 4, names="pq"), tmp_path / "whole.h5")
    with h5py.File(path) as file:
        assert "model_weights" in file
    assert perturb(fresh(lambda: chain(k, 4, names="q")), 1)
    assert check(lambda: chain(k, 4, names="q"), path, by_name=True).report.assigned == 2
