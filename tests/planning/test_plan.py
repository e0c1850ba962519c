"""Plans from made-up catalogs and variables: bounds, budget, routes. No file is read and no TensorFlow used."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastassign as fa
from fastassign.catalog.records import Extent, TensorRecord
from fastassign.matching.assignment import Assignment, Hook, Matching
from fastassign.planning.coalesce import GAP
from fastassign.planning.routes import ALIGNMENT
from fastassign.targets.target import Target
from support.options import load_options
from support.plans import ORIGIN, plan_of


def assignment(number, offset, nbytes, *, fit="same", plain=True, encoding="raw"):
    key = f"layers/l{number}/vars/0"
    extents = (Extent(offset, nbytes),) if nbytes and encoding == "raw" else ()
    record = TensorRecord(key, (nbytes,), "|u1", encoding, extents, "" if encoding == "raw" else "chunked")
    variable = SimpleNamespace(name=f"v{number}")
    return Assignment(record, Target(f"l{number}/v", (nbytes,), "uint8", variable, variable if plain else None), fit)


def matching_of(assignments, **rest):
    return Matching("keras", "keras3", dict(enumerate(assignments)), **rest)


def make(assignments, *, atomic=False, **knobs):
    return plan_of(matching_of(assignments), load_options(**knobs), atomic=atomic)


@st.composite
def loads(draw):
    """Tensors of all kinds, in any order, without overlaps."""
    found, offset = [], 0
    for number in range(draw(st.integers(0, 25))):
        nbytes = draw(st.one_of(st.integers(0, 300), st.integers(0, 60_000)))
        offset += draw(st.integers(0, 9000))
        found.append(
            assignment(
                number,
                offset,
                nbytes,
                fit=draw(st.sampled_from(["same", "same", "cast"])),
                plain=draw(st.booleans()),
                encoding=draw(st.sampled_from(["raw", "raw", "raw", "h5py"])),
            )
        )
        offset += nbytes
    return draw(st.permutations(found))


KNOBS = st.fixed_dictionaries(
    {
        "read_bytes": st.integers(4096, 20_000),
        "gap_bytes": st.integers(0, 5000),
        "window_bytes": st.integers(1, 100_000),
        "arena_bytes": st.integers(0, 2000),
        "max_staging_bytes": st.integers(180_000, 1 << 21),
    }
)


@given(loads(), KNOBS)
def test_every_variable_is_placed_once_and_every_byte_read_once(assignments, knobs):
    plan = make(assignments, **knobs)
    placed = [p.assignment for batch in plan.schedule.batches for p in batch.placements]
    assert sorted(map(id, placed)) == sorted(map(id, assignments))
    for batch in plan.schedule.batches:
        got = {}
        for read in batch.reads:
            offset = read.offset
            for piece in read.pieces:
                if piece.owner != GAP:
                    got.setdefault(piece.owner, []).append((piece.start, offset, piece.nbytes))
                offset += piece.nbytes
        for owner, placement in enumerate(batch.placements):
            record = placement.assignment.record
            assert placement.nbytes == record.nbytes
            if not record.extents:
                assert owner not in got
                continue
            filled = 0
            for start, offset, nbytes in sorted(got[owner]):
                assert start == filled
                assert offset == record.extents[0].offset + start
                filled += nbytes
            assert filled == record.nbytes
        assert batch.nbytes == sum(p.nbytes for p in batch.placements)
    assert plan.nbytes == sum(each.record.nbytes for each in assignments)


@given(loads(), KNOBS)
def test_arenas_hold_their_variables_apart_and_aligned(assignments, knobs):
    for batch in make(assignments, **knobs).schedule.batches:
        end = 0
        for placement, start in zip(batch.placements, batch.arena_starts, strict=True):
            target = placement.assignment.target
            if placement.assignment.fit == "cast" or target.resource is None:
                assert placement.route == "assign"
            else:
                assert placement.route == ("arena" if placement.nbytes <= knobs["arena_bytes"] else "owned")
            if placement.route == "arena":
                assert start % ALIGNMENT == 0
                assert start >= end
                end = start + placement.nbytes
        assert end <= batch.arena_bytes


def staged(plan):
    """The most bytes that stand in open batches when the executor's rule is followed, at any order of finishing."""
    most = current = 0
    open_batches = []
    for batch in plan.schedule.batches:
        while open_batches and current + batch.staged_bytes > plan.schedule.window_bytes and not plan.atomic:
            current -= open_batches.pop(0).staged_bytes
        open_batches.append(batch)
        current += batch.staged_bytes
        most = max(most, current)
    return most


@given(loads(), KNOBS, st.booleans())
def test_staging_is_bounded_and_said(assignments, knobs, atomic):
    total = sum(each.record.nbytes for each in assignments)
    try:
        plan = make(assignments, atomic=atomic, **knobs)
    except fa.Budget:
        # Padding to 64 bytes, and the two copies of the library's own assign, come on top of the values.
        assert atomic
        assert 3 * total + 64 * len(assignments) > knobs["max_staging_bytes"]
        return
    assert staged(plan) <= plan.staging_bytes <= knobs["max_staging_bytes"]
    assert plan.schedule.window_bytes <= max(knobs["window_bytes"], 1)
    if atomic:
        assert plan.staging_bytes >= total


@given(loads(), KNOBS, st.booleans(), st.integers(0, 59_999))
def test_the_least_that_works_works_and_less_does_not(assignments, knobs, atomic, limit):
    knobs["max_staging_bytes"] = limit
    try:
        make(assignments, atomic=atomic, **knobs)
    except fa.Budget as error:
        text, hint = str(error), error.hint
    else:
        return
    needed = int(hint.partition("max_staging_bytes=")[2].partition(")")[0])
    assert str(needed) in text
    assert f"max_staging_bytes is {limit}" in text
    assert needed > limit
    plan = make(assignments, atomic=atomic, **{**knobs, "max_staging_bytes": needed})
    assert plan.staging_bytes <= needed
    with pytest.raises(fa.Budget):
        make(assignments, atomic=atomic, **{**knobs, "max_staging_bytes": needed - 1})


def test_the_budget_error_names_the_largest_tensor():
    assignments = [assignment(0, 0, 100), assignment(1, 200, 9000), assignment(2, 10_000, 50)]
    with pytest.raises(fa.Budget, match="needs 9024 bytes of host memory for the largest tensor") as caught:
        make(assignments, max_staging_bytes=500)
    error = caught.value
    assert error.tensor == "layers/l1/vars/0"
    assert error.hint == "LoadOptions(max_staging_bytes=9024) is the least that works"
    assert isinstance(error, MemoryError)
    with pytest.raises(
        fa.Budget, match=r"needs 9216 bytes of host memory for all tensors together, .* \(atomic=True\)"
    ):
        make(assignments, max_staging_bytes=9215, atomic=True)


def test_what_a_layer_loads_itself_counts():
    own = Hook(object(), "layers/own", {"0": TensorRecord("layers/own/vars/0", (5000,), "|u1")})
    matching = matching_of([assignment(0, 0, 100)], hooks=(own,))
    with pytest.raises(fa.Budget, match="needs 5000 bytes of host memory for the weights that go through the library"):
        plan_of(matching, fa.LoadOptions(max_staging_bytes=4999))
    assert plan_of(matching, fa.LoadOptions(max_staging_bytes=5000)).staging_bytes == 5000


def test_tensors_that_share_bytes():
    assignments = [assignment(0, 0, 100), assignment(1, 99, 100)]
    with pytest.raises(fa.Refused, match=r"layers/l0/vars/0 and layers/l1/vars/0 share bytes") as caught:
        make(assignments)
    assert caught.value.rule == "overlap"
    assert caught.value.option == 'LoadOptions(allow={"overlap"})'
    assert make(assignments, allow={"overlap"}).nbytes == 200
    # One record for two variables is no overlap: the caller asked for it.
    one = assignment(0, 0, 100)
    assert make([one, Assignment(one.record, assignment(1, 0, 100).target, "same")]).nbytes == 200


def test_an_empty_plan():
    plan = make([])
    assert (plan.nbytes, plan.staging_bytes, plan.schedule.batches) == (0, 0, ())
    assert "0 tensors, 0 bytes in 0 reads" in str(plan)


def test_a_plan_prints_and_is_json():
    assignments = [
        assignment(0, 64, 100),
        assignment(1, 200, 200_000),
        assignment(2, 300_000, 8, fit="cast"),
        assignment(3, 0, 40, encoding="h5py"),
    ]
    matching = matching_of(
        assignments,
        skipped=("a layer: another shape",),
        missing=(Target("lonely", (1,), "float32", None, None),),
        unexpected=(TensorRecord("layers/extra/vars/0", (1,), "<f4"),),
    )
    plan = plan_of(matching, fa.LoadOptions())
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["file"] == str(ORIGIN.path)
    assert data["bytes"] == plan.nbytes == 200_148
    assert data["reads"] == sum(len(batch.reads) for batch in plan.schedule.batches)
    assert data["staging_bytes"] == plan.staging_bytes
    assert data["skipped"] == ["a layer: another shape"]
    assert data["missing_in_the_file"] == ["lonely"]
    assert data["unexpected_in_the_file"] == ["layers/extra/vars/0"]
    routes = {row["variable"]: (row["route"], row["bytes"], row["record"]) for row in data["tensors"]}
    assert routes == {
        "l0/v": ("arena", 100, "layers/l0/vars/0"),
        "l1/v": ("owned", 200_000, "layers/l1/vars/0"),
        "l2/v": ("assign (cast from |u1)", 8, "layers/l2/vars/0"),
        "l3/v": ("arena (chunked)", 40, "layers/l3/vars/0"),
    }
    text = str(plan)
    for name in (*routes, "lonely", "layers/extra/vars/0", "200148 bytes"):
        assert name in text


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({"threads": 0}, "threads must be at least 1, not 0"),
        ({"read_bytes": 4095}, "read_bytes must be at least 4096"),
        ({"gap_bytes": -1}, "gap_bytes must be at least 0"),
        ({"window_bytes": 0}, "window_bytes must be at least 1"),
        ({"arena_bytes": -1}, "arena_bytes must be at least 0"),
        ({"max_staging_bytes": -1}, "max_staging_bytes must be at least 0"),
        ({"match": "position"}, 'match must be "names" or "stock"'),
    ],
)
def test_options_are_valid_or_an_error(knobs, text):
    with pytest.raises(ValueError, match=text):
        load_options(**knobs)
