"""Nested layers that were frozen differently when the file was saved: exact here, by the names in the file.

Stock goes by position: it raises an error if shapes differ, and otherwise swaps weights silently.

Rows are numbered as in docs/internals/keras.md, section 9.
"""

import numpy as np
import pytest

import fastassign
from support.differential import LIBRARIES, differences, fill, fresh, perturb, quiet, save, snapshot, stock_load
from support.models import MODES, nested, set_mode

KINDS = ("functional", "sequential", "composite")


def values(layers):
    return [w.numpy() for layer in layers for w in layer.weights]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "named"),
    [((4, 4), True), ((4, 4), False), ((3, 5), False)],
    ids=["equal-named", "equal-auto", "distinct"],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_all_pairs_of_modes(library, kind, sizes, named, tmp_path):  # rows 24 to 26
    k = LIBRARIES[library]

    def build():
        return nested(k, kind, sizes=sizes, named=named)

    model, base, layers = fresh(build)
    fill(model, 7)
    set_mode(base, layers, "train")
    wanted = values(layers)
    suffixes = (".h5",) if named else (".h5", ".weights.h5")  # names mean nothing in Keras 3 files
    with quiet():
        for mode in MODES:
            set_mode(base, layers, mode)
            for suffix in suffixes:
                save(model, tmp_path / f"{mode}{suffix}")
    # Not `fresh` again: automatic names go on counting, as in a process that has made other models.
    other, other_base, other_layers = build()
    wrong = []
    for loading in MODES:
        set_mode(other_base, other_layers, loading)
        for saving in MODES:
            for suffix in suffixes:
                perturb(other, 0.5)
                fastassign.load_weights(other, tmp_path / f"{saving}{suffix}")
                if not all(map(np.array_equal, values_by_role(other_layers), wanted)):
                    wrong.append((saving, loading, suffix))
    assert wrong == []


def values_by_role(layers):
    """Return the values in the order they have when everything is trainable."""
    found = []
    for layer in layers:
        roles = {w.name.split("/")[-1].split(":")[0]: w.numpy() for w in layer.weights}
        order = ("gamma", "beta", "moving_mean", "moving_variance", "kernel", "bias")
        found += [roles[role] for role in order if role in roles]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_stock_is_silently_wrong(library, kind, tmp_path):  # row 25
    k = LIBRARIES[library]
    model, base, layers = fresh(lambda: nested(k, kind))
    fill(model, 7)
    set_mode(base, layers, "last2_trainable")
    with quiet():
        save(model, tmp_path / "x.h5")
    set_mode(base, layers, "train")
    perturb(model, 0.5)
    assert stock_load(model, tmp_path / "x.h5").error is None
    theirs = snapshot(model)
    perturb(model, 0.5)
    report = fastassign.load_weights(model, tmp_path / "x.h5")
    assert len(differences(theirs, snapshot(model))) == 8, "stock has changed"
    assert len(report.repaired) == 1
    # On request stock's result, wrong as it is.
    perturb(model, 0.5)
    fastassign.load_weights(model, tmp_path / "x.h5", options=fastassign.LoadOptions(match="stock"))
    assert differences(theirs, snapshot(model)) == []


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_same_shapes_swapped(library, tmp_path):  # row 29
    k = LIBRARIES[library]

    def build():
        p, q = k.layers.Dense(4, name="p"), k.layers.Dense(4, name="q")
        base = k.Sequential([k.Input((4,)), p, q], name="base")
        inputs = k.Input((4,))
        return k.Model(inputs, base(inputs), name="outer"), p

    model, p = fresh(build)
    fill(model, 3)
    wanted = p.kernel.numpy()
    p.trainable = False
    with quiet():
        save(model, tmp_path / "x.h5")
    p.trainable = True
    perturb(model, 0.5)
    assert stock_load(model, tmp_path / "x.h5").error is None
    assert not np.array_equal(p.kernel.numpy(), wanted), "stock has learned to load this"
    perturb(model, 0.5)
    fastassign.load_weights(model, tmp_path / "x.h5")
    assert np.array_equal(p.kernel.numpy(), wanted)


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_nested_convolutions(library, tmp_path):
    """tf_keras' conversion of a nested model raises an error for convolutions at other positions."""
    k = LIBRARIES[library]

    def build():
        layers = [
            k.layers.Conv2D(2, 3, padding="same", name="a"),
            k.layers.BatchNormalization(name="b"),
            k.layers.Conv2D(3, 1, name="c"),
            k.layers.BatchNormalization(name="d"),
        ]
        base = k.Sequential([k.Input((4, 4, 2)), *layers], name="base")
        inputs = k.Input((4, 4, 2))
        return k.Model(inputs, base(inputs), name="outer"), base, layers

    model, base, layers = fresh(build)
    fill(model, 3)
    wanted = values_by_role(layers)
    wrong = []
    for saving in MODES:
        set_mode(base, layers, saving)
        with quiet():
            save(model, tmp_path / f"{saving}.h5")
    for saving in MODES:
        for loading in MODES:
            set_mode(base, layers, loading)
            perturb(model, 0.5)
            fastassign.load_weights(model, tmp_path / f"{saving}.h5")
            if not all(map(np.array_equal, values_by_role(layers), wanted)):
                wrong.append((saving, loading))
    assert wrong == []


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_twice_nested(library, tmp_path):
    """Names of layers two levels down: frozen inside the inner of two models."""
    k = LIBRARIES[library]

    def build():
        layers = [k.layers.Dense(4), k.layers.BatchNormalization(), k.layers.Dense(4)]
        inner = k.Sequential([k.Input((4,)), *layers], name="inner")
        x = k.Input((4,))
        middle = k.Model(x, k.layers.Dense(4)(inner(x)), name="middle")
        y = k.Input((4,))
        return k.Model(y, middle(y), name="outer"), layers

    model, layers = fresh(build)
    fill(model, 3)
    wanted = values_by_role(layers)
    for frozen in range(3):
        layers[frozen].trainable = False
        with quiet():
            save(model, tmp_path / "x.h5")
        layers[frozen].trainable = True
        other, other_layers = build()
        perturb(other, 0.5)
        fastassign.load_weights(other, tmp_path / "x.h5")
        assert all(map(np.array_equal, values_by_role(other_layers), wanted))
