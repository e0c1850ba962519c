"""The diff that explains a mismatch, and the call that it proposes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import fastassign as fa
from fastassign.cli import app
from fastassign.errors import Mismatch
from fastassign.matching.mismatch import explain
from fastassign.matching.mismatch.alignment import WeightGroup, pair
from fastassign.matching.mismatch.diff import make_diff
from support.differential import LIBRARIES, fill, fresh, our_load, perturb, saved, snapshot
from support.models import backbone, chain, larger, with_own_weights

BOTH = pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])


@pytest.fixture(params=sorted(LIBRARIES))
def k(request):
    return LIBRARIES[request.param]


def mismatch(model, path, **arguments):
    with pytest.raises(Mismatch) as raised:
        fa.load_weights(model, path, **arguments)
    return raised.value


# File, model, the pairs of layers that load.
CASES = {
    "head": (((4, 4, 5), "pqr"), ((4, 4, 2), "pqr"), "pq pq"),
    "head and counters": (((4, 4, 5), ["d_3", "d_4", "d_5"]), ((4, 4, 2), ["d_4", "d_5", "d_6"]), "01 01"),
    "one more": (((4, 4), "pq"), ((4, 4, 3), "pqr"), "pq pq"),
    "all new names, other head": (((6, 4, 5), ["one", "two", "x"]), ((6, 4, 2), ["uno", "due", "y"]), "01 01"),
}


@BOTH
@pytest.mark.parametrize("case", sorted(CASES))
def test_the_call_loads_what_fits(k, case, suffix, tmp_path):
    (units, names), (other_units, other_names), loads = CASES[case]
    path = saved(lambda: chain(k, *units, names=names), tmp_path / f"x{suffix}")
    source = fill(fresh(lambda: chain(k, *units, names=names)))
    model = perturb(fresh(lambda: chain(k, *other_units, names=other_names)), 0.5)
    before = snapshot(model)
    error = mismatch(model, path)
    assert snapshot(model) == before
    assert error.diff.call in error.hint and f"hint: {error.hint}" in error.__notes__
    assert str(error.diff) in error.__notes__ and str(error.diff) not in str(error)
    report = eval(error.diff.call, {"fa": fa, "model": model, "path": path, "error": error})
    count = len(loads.split()[0])
    assert report.assigned == 2 * count
    for i, (mine, theirs) in enumerate(zip(model.layers, source.layers, strict=False)):
        if i < count:
            assert all(map(np.array_equal, mine.get_weights(), theirs.get_weights()))
    assert all(np.all(v == 0.5) for layer in model.layers[count:] for v in layer.get_weights())


@BOTH
def test_a_table_of_both_sides(k, suffix, tmp_path):
    path = saved(lambda: larger(k, backbone(k), 5), tmp_path / f"x{suffix}")
    error = mismatch(fresh(lambda: larger(k, backbone(k), 2)), path)
    lines = str(error.diff).splitlines()
    assert [row.remark for row in error.diff.rows] == ["another shape"] * 2
    assert "(4, 5)" in lines[1] and "(4, 2)" in lines[1] and lines[1].index("(4, 2)") == lines[2].index("(2,)")
    assert error.diff.exclude == ("head",) and not error.diff.rename


def test_counts_and_what_is_alone(k, tmp_path):
    path = saved(lambda: chain(k, 4, 3, names="pq"), tmp_path / "x.h5")
    model = fresh(lambda: k.Sequential([k.Input((4,)), k.layers.Dense(4, use_bias=False, name="p")], name="m"))
    error = mismatch(model, path)
    assert [row.remark for row in error.diff.rows] == ["2 weights, not 1", "not in the model"]
    assert error.diff.call == ""  # nothing would be left to load
    assert "by_name=True" in error.hint


def test_layers_that_are_absent_are_renamed_all_at_once(k, tmp_path):
    path = saved(lambda: chain(k, 4, 5, 2, names=["d_1", "d_2", "head"]), tmp_path / "x.h5")
    model = perturb(fresh(lambda: chain(k, 4, 5, 3, names=["d_2", "d_3", "head"])), 0.5)
    error = mismatch(model, path, options=fa.LoadOptions(exclude="head"))
    assert dict(error.diff.rename) == {"d_1": "d_2", "d_2": "d_3"} and error.diff.call == error.hint
    assert fa.load_weights(
        model, path, options=fa.LoadOptions(rename=error.diff.rename, exclude=error.diff.exclude)
    ).assigned == 4  # fmt: skip


def test_top_level_weights(k, tmp_path):
    path = saved(lambda: with_own_weights(k, (2,)), tmp_path / "x.h5")
    model = perturb(fresh(lambda: with_own_weights(k, (3,))), 0.5)
    error = mismatch(model, path)
    assert error.diff.rows[0].saved.startswith("top_level_model_weights/")
    assert eval(error.diff.call, {"fa": fa, "model": model, "path": path}).assigned == 2


def test_the_right_file_read_the_wrong_way_has_no_diff(k, tmp_path):
    path = saved(lambda: chain(k, 4, names="p"), tmp_path / "x.h5").rename(tmp_path / "x.weights.h5")
    assert mismatch(fresh(lambda: chain(k, 4, names="p")), path).diff is None


def test_an_explanation_that_fails_hides_nothing(k, monkeypatch, tmp_path):
    path = saved(lambda: chain(k, 4, names="p"), tmp_path / "x.h5")
    model = fresh(lambda: chain(k, 5, names="p"))
    wanted = str(our_load(model, path).error)
    monkeypatch.setattr(explain, "make_diff", lambda *_, **__: 1 / 0)
    error = mismatch(model, path)
    assert str(error) == wanted and error.diff is None


MODULE = """
import keras
def small():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="a"), keras.layers.Dense(2, name="b")])
"""


def test_plan_shows_it(tmp_path, monkeypatch):
    saved(lambda: chain(LIBRARIES["keras"], 3, 2, names="ab"), tmp_path / "x.h5")
    (tmp_path / "models_of_diff.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", "x.h5", "--model", "models_of_diff:small"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "  a/kernel     (4, 3)  a/kernel      (4, 5)  another shape" in result.output
    data = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert data["diff"][0]["remark"] == "another shape" and data["diff"][0]["saved"] == "a/kernel"


def parts(names, shapes):
    return [WeightGroup(name, (("w", shape),), (name,)) for name, shape in zip(names, shapes, strict=True)]


NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
SIDE = st.lists(st.tuples(NAME, st.tuples(st.integers(1, 3))), max_size=8, unique_by=lambda row: row[0])


@pytest.mark.slow
@given(SIDE, SIDE, st.booleans())
def test_any_two_sides(one, other, by_rank):
    saved_parts, present = (parts([r[0] for r in side], [r[1] for r in side]) for side in (one, other))
    pairs = pair(saved_parts, present, by_rank=by_rank)
    assert sorted(p.name for p, _ in pairs if p) == sorted(r[0] for r in one)
    assert [p.name for _, p in pairs if p] == [r[0] for r in other]
    diff = make_diff(saved_parts, present, by_rank=by_rank)
    text = str(diff)
    assert all(line.isprintable() for line in text.splitlines()) and len(text.splitlines()) <= 23
    # What the call would load has a weight of the same shape in the file, under a name of its own.
    shapes = {new: shape for name, shape in one if (new := diff.rename.get(name, name)) is not None}
    assert len(shapes) == len(one) - sum(new is None for new in diff.rename.values())
    assert all(shapes.get(name) == shape for name, shape in other if name not in diff.exclude)


@given(st.permutations(range(6)), st.integers(1, 40))
def test_other_counters_and_other_shapes_are_found(order, start):
    names = [f"dense_{i}" for i in range(6)]
    later = [f"dense_{i + start}" for i in range(6)]
    same = make_diff(parts(names, [(1,)] * 6), parts(later, [(1,)] * 6), by_rank=True)
    assert dict(same.rename) == dict(zip(names, later, strict=True)) and not same.exclude
    shapes = [(i + 1,) for i in range(6)]
    mixed = make_diff(parts(names, shapes), parts([f"x{i}" for i in order], [shapes[i] for i in order]), by_rank=False)
    assert dict(mixed.rename) == {f"dense_{i}": f"x{i}" for i in range(6)} and not mixed.exclude


def test_it_stays_small():
    many = make_diff(
        parts([f"layer_{i}" * 20 for i in range(600)], [(i,) for i in range(600)]),
        parts([f"other_{i}" * 20 for i in range(600)], [(i + 600,) for i in range(600)]),
        by_rank=False,
    )
    text = str(many)
    assert len(text) < 5000 and "... and 1180 more" in text and many.call == ""
    renamed = make_diff(parts(list("abcdefgh"), [(1,)] * 8), parts(list("ijklmnop"), [(1,)] * 8), by_rank=False)
    assert "rename=error.diff.rename" in renamed.call
