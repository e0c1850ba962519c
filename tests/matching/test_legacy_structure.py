"""Composite layers whose inner names are not those of the file: matched by structure, by position, or refused."""

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastassign
from fastassign.errors import Mismatch
from fastassign.matching.legacy.weight_structure import Ambiguous, order_by_structure
from support.differential import (
    LIBRARIES,
    assert_untouched,
    fill,
    fresh,
    our_load,
    perturb,
    quiet,
    save,
    snapshot,
    stock_load,
)
from support.models import MODES, composite_class, set_mode


@pytest.fixture(params=sorted(LIBRARIES))
def k(request):
    return LIBRARIES[request.param]


def around(k, kind, layers):
    """Input -> base of the given layers -> nothing else."""
    if kind == "composite":
        base = composite_class(k)(layers, name="base")
    else:
        base = k.Sequential([k.Input((4,)), *layers], name="base")
    inputs = k.Input((4,))
    return k.Model(inputs, base(inputs), name="outer"), base, layers


def four(k, names, sizes=(4, 4)):
    return [
        k.layers.Dense(sizes[0], name=names[0]),
        k.layers.BatchNormalization(name=names[1]),
        k.layers.Dense(sizes[1], name=names[2]),
        k.layers.BatchNormalization(name=names[3]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3, 5), (4, 4)], ids=["distinct", "equal"])
@pytest.mark.parametrize("kind", ["sequential", "composite"])
def test_renamed_layers_inside_in_all_pairs_of_modes(k, kind, sizes, tmp_path):
    """Exact or refused, where stock is right, wrong or raises."""
    model, base, layers = fresh(lambda: around(k, kind, four(k, "abcd", sizes)))
    fill(model, 7)
    values = {layer.name: [w.numpy() for w in layer.weights] for layer in layers}
    with quiet():
        for mode in MODES:
            set_mode(base, layers, mode)
            save(model, tmp_path / f"{mode}.h5")
    other, other_base, other_layers = fresh(lambda: around(k, kind, four(k, "wxyz", sizes)))
    exact, refused = set(), set()
    for loading in MODES:
        set_mode(other_base, other_layers, loading)
        for saving in MODES:
            perturb(other, 0.5)
            before = snapshot(other)
            ours = our_load(other, tmp_path / f"{saving}.h5")
            if ours.error is None:
                exact.add((saving, loading))
                for mine, theirs in zip(other_layers, "abcd", strict=True):
                    assert all(any(np.array_equal(w.numpy(), v) for v in values[theirs]) for w in mine.weights)
            else:
                assert isinstance(ours.error, Mismatch)
                assert_untouched(other, before)
                refused.add((saving, loading))
    if sizes == (3, 5):
        assert not refused
        return
    assert ("last2_trainable", "train") in refused
    # Nothing frozen on either side, or nothing that moves: as by stock.
    assert {("train", "train"), ("train", "last2_trainable"), ("frozen_top", "frozen_each")} <= exact
    set_mode(other_base, other_layers, "train")
    assert stock_load(other, tmp_path / "last2_trainable.h5").error is None, "stock has learned to refuse this"


@pytest.mark.parametrize("by_name", [False, True])
def test_two_alike_of_which_one_is_frozen(k, by_name, tmp_path):
    def build(*names):
        return around(k, "sequential", [k.layers.Dense(4, name=name) for name in names])

    model, _, _ = fresh(lambda: build("p", "q"))
    with quiet():
        save(fill(model, 3), tmp_path / "x.h5")
    other, _, (r, s) = fresh(lambda: build("r", "s"))
    fastassign.load_weights(other, tmp_path / "x.h5", by_name=by_name)
    assert [w.numpy().tolist() for w in other.weights] == [w.numpy().tolist() for w in model.weights]
    r.trainable = False
    before = snapshot(perturb(other, 0.5))
    with pytest.raises(Mismatch, match="can't be told apart") as raised:
        fastassign.load_weights(other, tmp_path / "x.h5", by_name=by_name)
    assert_untouched(other, before)
    assert all(name in str(raised.value) for name in ("p/kernel", "q/kernel", "r/kernel", "s/kernel"))
    fastassign.load_weights(other, tmp_path / "x.h5", by_name=by_name, options=fastassign.LoadOptions(match="stock"))
    s.trainable = False  # both: nothing moves
    fastassign.load_weights(other, tmp_path / "x.h5", by_name=by_name)
    # Names in the file, or positions that no freezing moves, settle it.
    named, _, (p, _) = fresh(lambda: build("p", "q"))
    p.trainable = False
    report = fastassign.load_weights(named, tmp_path / "x.h5", by_name=by_name)
    assert report.repaired and np.array_equal(p.kernel.numpy(), model.layers[-1].layers[0].kernel.numpy())


def test_the_configuration_of_a_whole_model_tells(k, tmp_path):
    """All pairs of modes are exact, though layers that look alike have other names, where stock swaps or raises."""

    def build(names):
        _, base, layers = around(k, "sequential", four(k, names))
        return k.Sequential([k.Input((4,)), base, k.layers.Dense(2, name="head")], name="more"), base, layers

    model, base, layers = fresh(lambda: build("abcd"))
    fill(model, 7)
    set_mode(base, layers, "train")
    wanted = [w.numpy() for layer in layers for w in layer.weights]
    with quiet():
        for mode in MODES:
            set_mode(base, layers, mode)
            save(model, tmp_path / f"{mode}-whole.h5")
    other, other_base, other_layers = build([None] * 4)  # automatic names
    wrong, repaired = [], 0
    for loading in MODES:
        for saving in MODES:
            set_mode(other_base, other_layers, loading)
            perturb(other, 0.5)
            report = fastassign.load_weights(other, tmp_path / f"{saving}-whole.h5")
            repaired += len(report.repaired)
            set_mode(other_base, other_layers, "train")
            found = [w.numpy() for layer in other_layers for w in layer.weights]
            if not all(map(np.array_equal, found, wanted)):
                wrong.append((saving, loading))
    assert wrong == [] and repaired >= 20


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", "[" * 100_000, '{"config": {"layers": [{"config": {"name": "base", "layers": [1, null]}}]}}'],
)
def test_a_strange_configuration_tells_nothing(k, text, tmp_path):
    def build(*names):
        return around(k, "sequential", [k.layers.Dense(4, name=name) for name in names])[0]

    with quiet():
        path = save(fill(fresh(lambda: build("p", "q")), 3), tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = text
    other = fresh(lambda: build("r", "s"))
    assert fastassign.load_weights(other, path).assigned == 4  # by position
    other.layers[-1].layers[0].trainable = False
    with pytest.raises(Mismatch, match="told apart"):
        fastassign.load_weights(other, path)


PARTS = {
    "dense": [("kernel", (4, 4), True), ("bias", (4,), True)],
    "norm": [("gamma", (4,), True), ("beta", (4,), True), ("mean", (4,), False), ("variance", (4,), False)],
    "wide": [("kernel", (4, 9), True), ("bias", (9,), True)],
}


def listed(parts, frozen, prefix):
    """Return (truth, (name, shape)) of the weights of parts, trainable ones first."""
    rows = [
        ((i, role), (f"{prefix}{i}/{role}", shape), trainable and not frozen[i])
        for i, part in enumerate(parts)
        for role, shape, trainable in PARTS[part]
    ]
    return [r[:2] for r in rows if r[2]] + [r[:2] for r in rows if not r[2]]


@given(st.lists(st.tuples(st.sampled_from(sorted(PARTS)), st.booleans(), st.booleans()), min_size=1, max_size=5))
def test_never_wrong_where_something_frozen_shows(rows):
    """A returned order is the right one, unless neither side shows that anything was frozen."""
    parts = [row[0] for row in rows]
    saved = listed(parts, [row[1] for row in rows], "x")
    present = listed(parts, [row[2] for row in rows], "y")
    thawed = [[p[0] for p in present].index(t[0]) for t in listed(parts, [False] * len(rows), "y")]
    truth = [[s[0] for s in saved].index(p[0]) for p in present]
    try:
        order = order_by_structure([s[1] for s in saved], [p[1] for p in present], thawed)
    except Ambiguous:
        assert len(set(parts)) < len(parts), "each part looks different"
        return
    if len(set(parts)) == len(parts):
        assert order == truth
    elif not any(row[1] for row in rows):
        # Saved with nothing frozen: right, or left to stock, which raises because a shape does not fit.
        fits = all(s[1][1] == p[1][1] for s, p in zip(saved, present, strict=True))
        assert order == truth or (order is None and (truth == sorted(truth) or not fits))
