"""Plans for several devices, from made-up records and variables: every byte once, everything inside its bounds."""

import json
import random
from types import SimpleNamespace

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

import fastassign as fa
from fastassign.catalog.memory import ArrayRecord
from fastassign.catalog.records import Extent, TensorRecord, itemsize_of
from fastassign.errors import Unsupported
from fastassign.kernels.cast import CASTS
from fastassign.matching.assignment import Assignment, Hook, Matching, fit
from fastassign.planning.batches import TABLE_ROW_BYTES
from fastassign.planning.coalesce import GAP
from fastassign.planning.costs import seconds_of, shortest
from fastassign.planning.lanes import NO_DEVICES, PAGE_BYTES, Device, Devices
from fastassign.planning.ring_budget import MIN_SLOT_BYTES, RingBudget
from fastassign.planning.routes import ALIGNMENT, DEVICE_DTYPES, DEVICE_FUSED_DTYPES
from fastassign.streaming.windows import Windows
from fastassign.targets.target import Target
from support.options import load_options
from support.plans import plan_of
from support.profiles import cases

PREFIX = "/job:localhost/replica:0/task:0/device:"
HOST, FIRST, SECOND, FAR = (f"{PREFIX}{name}" for name in ("CPU:0", "GPU:0", "GPU:1", "GPU:2"))
NO_KERNELS = "numba can't use CUDA: made up"
NOT_REACHED = f"{FAR}: there is no driver: values go through TensorFlow's own copy"

# The variable's dtype, and the file's.
SAME = [
    ("float32", "<f4"), ("float32", "<f4"), ("float16", "<f2"), ("bfloat16", "|V2"), ("float64", "<f8"),
    ("int8", "|i1"), ("int64", "<i8"), ("uint8", "|u1"), ("uint64", "<u8"),
]  # fmt: skip
CASTABLE = [("bfloat16", "<f4"), ("float16", "<f4")]
OTHER_CASTS = [("float32", "<f8"), ("int64", "<f4"), ("bfloat16", "<f8")]
KEPT_ON_THE_HOST = [
    ("int32", "<i4"), ("bool", "|b1"), ("uint32", "<u4"), ("int16", "<i2"), ("uint16", "<u2"), ("complex64", "<c8"),
    ("float8_e4m3fn", "|V1"),
]  # fmt: skip

PALETTES = [
    [*SAME, *CASTABLE, *OTHER_CASTS, *KEPT_ON_THE_HOST],
    SAME,
    [SAME[0]],
    [SAME[0], SAME[2], CASTABLE[1]],
    [SAME[3], CASTABLE[0]],
    CASTABLE,
]


def assignment(
    number, offset, shape, *, dtype="float32", stored="<f4", device=FIRST, plain=True, encoding="raw", cut_at=0, gap=0
):
    """A record at an offset of the file, or in two parts of it, and a variable that stands on a device."""
    key, count = f"layers/l{number}/vars/0", 1
    for size in shape:
        count *= size
    variable = SimpleNamespace(name=f"v{number}")
    resource = variable if plain else None
    target = Target(f"l{number}/v", shape, dtype, variable, resource, device if plain else "")
    if encoding == "array":
        array = SimpleNamespace(dtype=SimpleNamespace(name="float32"))
        return Assignment(ArrayRecord(key, array, shape, target.nbytes), target, "same")
    nbytes = count * itemsize_of(stored)
    extents = ()
    if nbytes and encoding == "raw":
        # In the middle of an element, if need be: a chunk ends where it likes.
        head = cut_at % nbytes
        extents = (Extent(offset, nbytes),)
        if head:
            extents = (Extent(offset, head), Extent(offset + head + gap, nbytes - head))
    record = TensorRecord(key, shape, stored, encoding, extents, "" if encoding == "raw" else "chunked")
    return Assignment(record, target, fit(record, target))


SHAPES = st.one_of(
    st.sampled_from([(), (0,), (1,), (3, 0), (16,), (64,), (7, 9), (256,)]),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 60_000)),
)
LARGE = st.tuples(st.integers(60_000, 2_500_000))


@st.composite
def loads(draw):
    """Tensors of all kinds for variables everywhere, in any order, without overlaps."""
    found, offset = [], 0
    # Few dtypes and devices a load, so that there is much that could go together.
    pairs = draw(st.sampled_from(PALETTES))
    places = draw(st.sampled_from([[FIRST], [FIRST, SECOND], [HOST, FIRST, FIRST, SECOND, SECOND, FAR]]))
    large = draw(st.integers(0, 2))
    for number in range(draw(st.integers(1, 20))):
        dtype, stored = draw(st.sampled_from(pairs))
        offset += draw(st.sampled_from([0, 0, 0, 1, 8, 2048, 100_000]))
        is_cut = draw(st.integers(0, 9)) == 0
        made = assignment(
            number,
            offset,
            draw(LARGE if number < large else SHAPES),
            dtype=dtype,
            stored=stored,
            device=draw(st.sampled_from(places)),
            plain=draw(st.integers(0, 9)) > 0,
            encoding=draw(st.sampled_from(["raw"] * 8 + ["h5py", "array"])),
            cut_at=draw(st.integers(1, 5000)) if is_cut else 0,
            gap=draw(st.integers(0, 9000)) if is_cut else 0,
        )
        offset = max((extent.offset + extent.nbytes for extent in made.record.extents), default=offset)
        found.append(made)
    return draw(st.permutations(found))


@st.composite
def surroundings(draw):
    """Devices: the second one with kernels or without."""
    return Devices(
        reached={FIRST: Device(FIRST), SECOND: Device(SECOND, draw(st.sampled_from(["", NO_KERNELS])))},
        fallbacks={FAR: NOT_REACHED},
    )


KNOBS = st.fixed_dictionaries(
    {
        "route": st.sampled_from(["auto", "auto", "auto", "eager", "direct", "fused"]),
        "cut": st.sampled_from(["auto", "auto", "split", "function", "scatter"]),
        "slot_bytes": st.sampled_from([16_384, 17_000, 40_000, 1 << 20, 8 << 20]),
        "fused_bytes": st.sampled_from([0, 1000, 64 << 10, 1 << 20]),
        "device_threads": st.integers(1, 20),
        "device_window_bytes": st.sampled_from([1, 10_000, 1 << 20, 512 << 20]),
        "max_staging_bytes": st.sampled_from([0, 9000, 100_000, 1 << 20, 20 << 20, 50 << 20, 8 << 30]),
        "read_bytes": st.sampled_from([30_000, 4 << 20]),
        "gap_bytes": st.sampled_from([0, 100, 4096]),
        "window_bytes": st.sampled_from([1, 1 << 20, 64 << 20]),
    }
)

CASES = cases(25)


def matching_of(assignments, **rest):
    return Matching("keras", "keras3", dict(enumerate(assignments)), **rest)


def make(assignments, devices, *, repeated=False, atomic=False, matching=None, **knobs):
    return plan_of(
        matching or matching_of(assignments),
        load_options(**knobs),
        devices=devices,
        repeated=repeated,
        atomic=atomic,
    )


def asked_for(error):
    """The number of bytes that a ``Budget`` asks for, which both its text and its hint name."""
    needed = int(error.hint.partition("max_staging_bytes=")[2].partition(")")[0])
    assert f"needs {needed} bytes" in str(error)
    return needed


def afford(assignments, devices, **how):
    """Plan with as much memory as is needed, which the error of a plan with less has to name exactly."""
    try:
        return make(assignments, devices, **how)
    except Unsupported:
        assume(False)
    except fa.Budget as error:
        needed = asked_for(error)
    assert needed > how["max_staging_bytes"]
    with pytest.raises(fa.Budget):
        make(assignments, devices, **{**how, "max_staging_bytes": needed - 1})
    try:
        return make(assignments, devices, **{**how, "max_staging_bytes": needed})
    except Unsupported:
        assume(False)


def is_reached(each, devices, knobs):
    """Whether the way to a device of our own is open to a value: said once more, in the words of ``docs``."""
    target, record = each.target, each.record
    device = devices.reached.get(target.device)
    if device is None or knobs["route"] == "eager" or target.resource is None or not record.extents:
        return False
    if target.dtype not in DEVICE_DTYPES:
        return False
    if each.fit != "cast":
        return True
    is_ours = record.dtype == "<f4" and ("float32", target.dtype) in CASTS
    return is_ours and device.has_kernels and len(record.extents) == 1


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans(), st.booleans())
def test_everything_is_placed_once_and_every_byte_read_once(assignments, devices, knobs, repeated, atomic):
    plan = afford(assignments, devices, repeated=repeated, atomic=atomic, **knobs)
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
            assert offset == read.offset + read.nbytes
        for owner, placement in enumerate(batch.placements):
            extents = list(placement.assignment.record.extents)
            pieces = sorted(got.get(owner, []))
            # Where each byte of the value comes from: the pieces say the same as the extents.
            start = 0
            for extent in extents:
                at = extent.offset
                while at < extent.offset + extent.nbytes:
                    assert pieces[0][:2] == (start, at)
                    at, start = at + pieces[0][2], start + pieces[0][2]
                    pieces.pop(0)
                assert at == extent.offset + extent.nbytes
            assert not pieces
    starts = [
        min(p.assignment.record.extents[0].offset for p in b.placements) for b in plan.schedule.batches if b.reads
    ]
    assert starts == sorted(starts)


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans())
def test_what_shares_a_copy_fits_into_a_slot(assignments, devices, knobs, repeated):
    plan = afford(assignments, devices, repeated=repeated, **knobs)
    slots = {lane.device: lane.slot_bytes for lane in plan.schedule.lanes}
    for batch in plan.schedule.batches:
        if not (batch.lane and batch.route == "fused"):
            assert batch.cut is None
            assert batch.head_bytes == 0
            continue
        event(f"a slab, {batch.cut}, casts: {batch.casts}")
        assert {(p.lane, p.assignment.target.device, p.route, p.casts) for p in batch.placements} == {
            (batch.lane, batch.lane, "fused", batch.casts)
        }
        (dtype,) = {p.assignment.target.dtype for p in batch.placements}
        assert dtype in DEVICE_FUSED_DTYPES
        assert {p.assignment.fit == "cast" for p in batch.placements} == {batch.casts}
        assert batch.arena_bytes <= slots[batch.lane]
        rows = len(batch.placements) if batch.cut == "scatter" else int(batch.casts)
        assert rows * TABLE_ROW_BYTES <= batch.head_bytes < rows * TABLE_ROW_BYTES + ALIGNMENT
        assert batch.head_bytes % ALIGNMENT == 0
        end = batch.head_bytes
        for placement, start in zip(batch.placements, batch.arena_starts, strict=True):
            assert start % ALIGNMENT == 0
            assert (start - batch.head_bytes) % (2 * ALIGNMENT if batch.casts else ALIGNMENT) == 0
            assert start >= end
            end = start + placement.nbytes
            assert placement.staged_bytes == 0
        assert end <= batch.arena_bytes
        assert batch.jobs == 1
        assert batch.device_bytes >= batch.arena_bytes


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans())
def test_reads_of_direct_batches_fit_into_slots(assignments, devices, knobs, repeated):
    plan = afford(assignments, devices, repeated=repeated, **knobs)
    slots = {lane.device: lane.slot_bytes for lane in plan.schedule.lanes}
    for batch in plan.schedule.batches:
        assert (batch.route == "direct") <= bool(batch.lane)
        if batch.route != "direct":
            continue
        event(f"direct, casts: {batch.casts}")
        assert {(p.lane, p.assignment.target.device, p.route, p.casts) for p in batch.placements} == {
            (batch.lane, batch.lane, "direct", batch.casts)
        }
        assert batch.jobs == len(batch.reads)
        assert batch.staged_bytes == batch.arena_bytes == 0
        assert batch.device_bytes == sum(p.assignment.target.nbytes for p in batch.placements)
        for read in batch.reads:
            assert read.nbytes + (ALIGNMENT if batch.casts else 0) <= slots[batch.lane]
        if batch.casts:
            (placement,) = batch.placements
            itemsize = itemsize_of(placement.assignment.record.dtype)
            for read in batch.reads:
                (piece,) = read.pieces
                assert piece.owner == 0
                assert piece.start % ALIGNMENT == 0
                assert piece.nbytes % itemsize == 0


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans())
def test_who_goes_by_a_lane(assignments, devices, knobs, repeated):
    plan = afford(assignments, devices, repeated=repeated, **knobs)
    for placement in (p for batch in plan.schedule.batches for p in batch.placements):
        each = placement.assignment
        if is_reached(each, devices, knobs):
            assert placement.lane == each.target.device
            assert placement.route in {"direct", "fused"}
            assert placement.casts == (each.fit == "cast")
        else:
            assert placement.lane == ""
            assert not placement.casts
            if each.target.resource is None or each.fit == "cast":
                assert placement.route == "assign"
            elif each.target.device != HOST:
                assert placement.route == "eager"
    far = [each for each in assignments if each.target.device == FAR]
    assert (NOT_REACHED in plan.fallbacks) == bool(far)
    lacking = [
        each
        for each in assignments
        if each.target.device == SECOND
        and devices.reached[SECOND].kernels_missing
        and is_reached(each, Devices({SECOND: Device(SECOND)}), knobs)
        and each.fit == "cast"
    ]
    assert any(NO_KERNELS in text for text in plan.fallbacks) == bool(lacking)
    assert not any(
        batch.cut == "scatter" and devices.reached[batch.lane].kernels_missing for batch in plan.schedule.batches
    )


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans())
def test_variables_on_the_host_go_as_they_went_without_devices(assignments, devices, knobs, repeated):
    plan = afford(assignments, devices, repeated=repeated, **knobs)
    hosted = [each for each in assignments if each.target.device in {"", HOST}]
    alone = make(hosted, NO_DEVICES, repeated=repeated, **{**knobs, "route": "auto", "max_staging_bytes": 8 << 30})

    def routes(made):
        return {
            id(p.assignment): (p.route, p.arena_bytes, p.staged_bytes)
            for batch in made.schedule.batches
            for p in batch.placements
            if p.assignment.target.device in {"", HOST}
        }

    assert routes(plan) == routes(alone)
    assert alone.schedule.lanes == ()


def staged_on_the_host(plan):
    return sum(batch.staged_bytes for batch in plan.schedule.batches)


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans(), st.booleans(), st.integers(0, 40 << 20))
def test_staging_is_bounded_and_the_least_that_works_is_named(assignments, devices, knobs, repeated, atomic, limit):
    how = {**knobs, "repeated": repeated, "atomic": atomic, "max_staging_bytes": limit}
    plan = afford(assignments, devices, **how)
    limit = plan.options.max_staging_bytes
    rings = sum(lane.slots * lane.slot_bytes for lane in plan.schedule.lanes)
    assert rings == sum(lane.ring_bytes for lane in plan.schedule.lanes)
    assert rings <= plan.staging_bytes <= limit
    event(
        "a ring of several slots"
        if any(lane.slots > 1 for lane in plan.schedule.lanes)
        else "rings of one slot, if any"
    )
    if atomic:
        assert plan.schedule.read_first
        assert plan.staging_bytes >= rings + staged_on_the_host(plan) + plan.schedule.copied_bytes
        return
    try:
        first = plan.reading_first()
    except fa.Budget as error:
        needed = asked_for(error)
        assert needed > limit
        assert needed <= staged_on_the_host(plan) + plan.schedule.copied_bytes + sum(
            -(-knobs["slot_bytes"] // PAGE_BYTES) * PAGE_BYTES for _ in plan.schedule.lanes
        )
        first = make(assignments, devices, **{**how, "max_staging_bytes": needed}).reading_first()
        limit = needed
        with pytest.raises(fa.Budget):
            make(assignments, devices, **{**how, "max_staging_bytes": needed - 1}).reading_first()
    assert first.schedule.read_first
    assert staged_on_the_host(first) + first.schedule.copied_bytes <= first.staging_bytes <= limit
    assert first.staging_bytes >= sum(lane.ring_bytes for lane in first.schedule.lanes) + staged_on_the_host(first)
    assert all(lane.slots >= 1 for lane in first.schedule.lanes)


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans())
def test_there_is_a_lane_for_each_device_that_is_used(assignments, devices, knobs, repeated):
    plan = afford(assignments, devices, repeated=repeated, **knobs)
    used = {batch.lane for batch in plan.schedule.batches if batch.lane}
    assert {lane.device for lane in plan.schedule.lanes} == used
    assert len(plan.schedule.lanes) == len(used)
    assert plan.schedule.threads == (knobs["device_threads"] if used else plan.options.threads)
    for lane in plan.schedule.lanes:
        own = [batch for batch in plan.schedule.batches if batch.lane == lane.device]
        assert 1 <= lane.slots <= sum(batch.jobs for batch in own)
        assert lane.slots <= -(-knobs["device_threads"] // len(used)) + 2
        assert lane.slot_bytes % PAGE_BYTES == 0
        assert lane.slot_bytes < max(knobs["slot_bytes"], PAGE_BYTES) + PAGE_BYTES
        assert lane.window_bytes == knobs["device_window_bytes"]
        assert lane.staged == any(batch.casts and batch.route == "direct" for batch in own)
        twins = lane.ring_bytes if lane.staged else 0
        assert lane.peak_bytes <= sum(batch.device_bytes for batch in own) + twins
        assert lane.kernels_missing == devices.reached[lane.device].kernels_missing


def sizes_of(plan):
    """What the executor gives to ``Windows``."""
    return {"": plan.schedule.window_bytes, **{lane.device: lane.window_bytes for lane in plan.schedule.lanes}}


def walk(batches, sizes, seed):
    """Admit and close in some order; yield what is open after each step, by lane."""
    rng, windows, opened, admitted = random.Random(seed), Windows(batches, sizes), {}, []
    while windows:
        now = list(windows.admit())
        # Two devices are served in turns, not one after the other, where the file has values for both.
        assert admitted or [number for number, _ in now] == sorted(number for number, _ in now)
        for number, batch in now:
            assert batches[number] is batch
            admitted.append(number)
            opened[number] = batch
            yield opened
        assert opened
        windows.close(opened.pop(rng.choice(sorted(opened))))
    assert not opened
    assert sorted(admitted) == list(range(len(batches)))
    for lane in {batch.lane for batch in batches}:
        own = [number for number in admitted if batches[number].lane == lane]
        assert own == sorted(own)


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans(), st.integers(0, 99))
def test_windows_keep_what_is_open_within_what_the_plan_says(assignments, devices, knobs, repeated, seed):
    plan = afford(assignments, devices, repeated=repeated, **knobs)
    sizes = sizes_of(plan)
    rings = sum(lane.ring_bytes for lane in plan.schedule.lanes)
    for opened in walk(plan.schedule.batches, sizes, seed):
        for lane, size in sizes.items():
            own = [batch.window_bytes for batch in opened.values() if batch.lane == lane]
            assert sum(own) <= size or len(own) == 1 or sum(own) == max(own)
        staged = sum(batch.staged_bytes for batch in opened.values())
        assert staged + plan.schedule.copied_bytes + rings <= plan.staging_bytes
        for lane in plan.schedule.lanes:
            twins = lane.ring_bytes if lane.staged else 0
            assert sum(b.device_bytes for b in opened.values() if b.lane == lane.device) + twins <= lane.peak_bytes


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans())
def test_a_plan_that_reads_first_opens_all_at_once(assignments, devices, knobs, repeated):
    plan = afford(assignments, devices, repeated=repeated, atomic=True, **knobs)
    windows = Windows(plan.schedule.batches, None)
    assert list(windows.admit()) == list(enumerate(plan.schedule.batches))
    for lane in plan.schedule.lanes:
        twins = lane.ring_bytes if lane.staged else 0
        assert lane.peak_bytes == sum(b.device_bytes for b in plan.schedule.batches if b.lane == lane.device) + twins
    for batch in plan.schedule.batches:
        assert windows
        windows.close(batch)
    assert not windows
    assert list(windows.admit()) == []


@CASES
@given(loads(), surroundings(), KNOBS, st.booleans(), st.booleans())
def test_a_plan_prints_and_is_json(assignments, devices, knobs, repeated, atomic):
    plan = afford(assignments, devices, repeated=repeated, atomic=atomic, **knobs)
    data, text = json.loads(json.dumps(plan.to_dict())), str(plan)
    routes = {p.route for batch in plan.schedule.batches for p in batch.placements if p.lane or p.route == "eager"}
    assert data["reasons"].keys() == routes
    for route, why in data["reasons"].items():
        assert f"{route}: {why}" in text
    assert [lane["device"] for lane in data["lanes"]] == [lane.device for lane in plan.schedule.lanes]
    for lane in plan.schedule.lanes:
        assert f"{lane.device}: {lane.slots} slots of {lane.slot_bytes} bytes" in text
        assert f"at most {lane.peak_bytes} bytes of device memory beyond the variables" in text
    for fallback in plan.fallbacks:
        assert f"fallback: {fallback}" in text
    assert data["fallback"] == list(plan.fallbacks)


# Single cases.


def reached(*, kernels=True):
    return Devices({FIRST: Device(FIRST, "" if kernels else NO_KERNELS)})


def in_a_row(shapes, **how):
    found, offset = [], 0
    for number, shape in enumerate(shapes):
        found.append(assignment(number, offset, shape, **how))
        offset += found[-1].record.nbytes
    return found


def test_a_variable_of_just_the_size_that_shares_a_copy_does():
    """512 * 512 values of float32 are a MiB, and so is the default."""
    (batch,) = make(in_a_row([(512, 512), (512,)]), reached()).schedule.batches
    assert batch.route == "fused"
    first, second = make(in_a_row([(512, 513), (512,)]), reached()).schedule.batches
    assert (first.route, second.route) == ("direct", "fused")
    # A slot also has to hold it, with a table before it.
    assert [b.route for b in make(in_a_row([(512, 512)]), reached(), slot_bytes=1 << 20).schedule.batches] == ["direct"]


@given(st.sampled_from([16_384, 20_480]), st.integers(300, 1500), st.sampled_from(["split", "scatter"]), st.booleans())
def test_tables_of_many_small_values_fit_into_slots_too(slot_bytes, count, cut, casts):
    dtype = "bfloat16" if casts else "float32"
    plan = make(in_a_row([(3,)] * count, dtype=dtype), reached(), slot_bytes=slot_bytes, cut=cut)
    assert max(batch.arena_bytes for batch in plan.schedule.batches) <= slot_bytes
    assert sum(len(batch.placements) for batch in plan.schedule.batches) == count
    # None is left emptier than it has to be, the last aside.
    for batch in plan.schedule.batches[:-1]:
        assert batch.arena_bytes + 2 * ALIGNMENT + TABLE_ROW_BYTES * (len(batch.placements) + 1) > slot_bytes


@pytest.mark.parametrize(
    ("dtype", "cut", "shapes", "nbytes"),
    [
        ("float32", "split", [(16,), (32,)], 64 + 128),  # the pieces are the slab's memory
        ("float32", "split", [(16,), (17,)], 64 + 128 + 2 * 68),  # what does not fill its place is copied
        ("float32", "function", [(16,), (17,)], 64 + 128 + 2 * 68),
        ("float32", "scatter", [(16,), (17,)], 64 + 64 + 128 + 64 + 68),  # with the table, and each value once more
        ("bfloat16", "split", [(32,), (64,)], 64 + 128 + 256 + 64 + 128),
        ("bfloat16", "split", [(32,), (33,)], 64 + 128 + 256 + 64 + 128 + 2 * 66),
        ("bfloat16", "scatter", [(32,), (33,)], 64 + 128 + 256 + 64 + 66),
    ],
)
def test_memory_of_a_device_for_values_that_share_a_copy(dtype, cut, shapes, nbytes):
    plan = make(in_a_row(shapes, dtype=dtype), reached(), cut=cut)
    (batch,), (lane,) = plan.schedule.batches, plan.schedule.lanes
    assert batch.device_bytes == lane.peak_bytes == nbytes


def test_little_memory_makes_slots_smaller_and_fewer():
    assignments = [*in_a_row([(1000, 1000)]), assignment(1, 5_000_000, (1000, 1000), device=HOST)]
    most = {"device_threads": 4, "slot_bytes": 1 << 20}
    (lane,) = make(assignments, reached(), **most).schedule.lanes
    assert (lane.slots, lane.slot_bytes) == (4, 1 << 20)
    # What the host has to have is left to it: half of the rest is the size of a slot.
    (lane,) = make(assignments, reached(), max_staging_bytes=4_000_000 + (1 << 20), **most).schedule.lanes
    assert (lane.slots, lane.slot_bytes) == (2, 1 << 19)
    (lane,) = make(assignments, reached(), max_staging_bytes=4_000_000 + MIN_SLOT_BYTES, **most).schedule.lanes
    assert (lane.slots, lane.slot_bytes) == (1, MIN_SLOT_BYTES)
    with pytest.raises(fa.Budget, match="the largest tensor") as caught:
        make(assignments, reached(), max_staging_bytes=4_000_000, **most)
    assert caught.value.tensor == "layers/l1/vars/0"
    assert asked_for(caught.value) == 4_000_000 + MIN_SLOT_BYTES
    with pytest.raises(fa.Budget, match="16384 bytes of host memory for the slots that copies to devices go through"):
        make(in_a_row([(1000, 1000)]), reached(), max_staging_bytes=16_383)


def test_reading_first_takes_slots_away():
    assignments = [
        *in_a_row([(1000, 1000)]),
        assignment(1, 5_000_000, (1000, 1000), device=HOST),
        assignment(2, 9_000_000, (1000, 1000), device=HOST),
    ]
    plan = make(assignments, reached(), device_threads=4, slot_bytes=1 << 20, max_staging_bytes=10_000_000)
    assert [lane.slots for lane in plan.schedule.lanes] == [4]
    first = plan.reading_first()
    assert [lane.slots for lane in first.schedule.lanes] == [1]
    assert first.staging_bytes == 8_000_000 + (1 << 20)
    assert first.schedule.batches is plan.schedule.batches
    assert plan.reading_first().schedule.lanes == first.reading_first().schedule.lanes


def test_what_the_library_loads_counts_beside_slots():
    own = TensorRecord("layers/own/vars/0", (20_000,), "|u1")
    matching = matching_of(in_a_row([(1000, 1000)]), hooks=(Hook(object(), "layers/own", {"0": own}),))
    # Layers load themselves first, one after the other; slots are there all the time.
    with pytest.raises(fa.Budget, match=r"36384 bytes .* own code, or are converted, and the slots that"):
        make((), reached(), matching=matching, max_staging_bytes=36_383)
    plan = make((), reached(), matching=matching, max_staging_bytes=36_384)
    assert plan.staging_bytes == 36_384
    with pytest.raises(fa.Budget, match="36384 bytes of host memory for all tensors together"):
        make((), reached(), matching=matching, max_staging_bytes=36_383, atomic=True)
    plan = make((), reached(), matching=matching, max_staging_bytes=36_384, atomic=True)
    assert plan.staging_bytes == 36_384


@given(st.integers(1, 500), st.data(), st.booleans(), st.booleans())
def test_the_shortest_way_is_taken(variables, data, repeated, scatters):
    runs = data.draw(st.integers(1, variables))
    costs = {
        cut: seconds_of(cut, variables=variables, runs=runs, repeated=repeated)
        for cut in ("split", "function", "scatter")
        if scatters or cut != "scatter"
    }
    cut = shortest(variables=variables, runs=runs, repeated=repeated, scatters=scatters)
    assert costs[cut] == min(costs.values())


def test_ways_that_are_known():
    for scatters in (True, False):
        assert shortest(variables=500, runs=500, repeated=True, scatters=scatters) == "function"
        assert shortest(variables=500, runs=12, repeated=False, scatters=scatters) == "split"
    assert shortest(variables=500, runs=500, repeated=False, scatters=True) == "scatter"
    assert shortest(variables=500, runs=500, repeated=False, scatters=False) == "split"


@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 1 << 24), st.integers(4, 9))
def test_rings_take_no_more_than_they_may(threads, devices, spare, pages):
    spare = max(spare, devices * MIN_SLOT_BYTES)
    rings = RingBudget.of(load_options(device_threads=threads, slot_bytes=pages * PAGE_BYTES), spare, devices)
    assert rings.nbytes <= spare
    assert rings.slots >= 1
    assert rings.count == devices
    assert MIN_SLOT_BYTES <= rings.slot_bytes <= pages * PAGE_BYTES
    # Nothing that could be had is left, but what no thread needs.
    is_enough = rings.slots == -(-threads // max(devices, 1)) + 2
    assert not devices or is_enough or rings.nbytes + devices * rings.slot_bytes > spare


def test_the_reasons_say_what_was_expected_and_what_was_asked_for():
    assignments = [*in_a_row([(n,) for n in range(1, 60)]), assignment(60, 1 << 20, (3000, 3000))]
    why = make(assignments, reached()).to_dict()["reasons"]
    assert why["fused"].startswith("59 variables in 1 copy, then a kernel copies each value out of it (expected ms: ")
    assert "scatter" in why["fused"]
    assert why["direct"] == "1 variable too large to share a copy"
    # What can't be done is not offered.
    why = make(assignments, reached(kernels=False)).to_dict()["reasons"]
    assert "then eager ops cut it up" in why["fused"]
    assert "scatter" not in why["fused"]
    assert make(assignments, reached(), route="direct").to_dict()["reasons"] == {"direct": "60 variables, as asked for"}
    why = make(assignments, reached(), cut="function").to_dict()["reasons"]["fused"]
    assert why == "59 variables in 1 copy, then one function cuts it up, as asked for"
    # Small ones that TensorFlow can't cut up are not too large.
    why = make(in_a_row([(4,), (5,)], dtype="int8", stored="|i1"), reached()).to_dict()["reasons"]
    assert why == {"direct": "2 variables of dtypes that TensorFlow does not cut up on a GPU"}


def test_what_was_asked_for_and_is_nowhere_possible():
    hosted = in_a_row([(4,)], device=HOST)
    for route in ("direct", "fused"):
        with pytest.raises(Unsupported, match=f'no value of this load can take the route "{route}"') as caught:
            make(hosted, reached(), route=route)
        assert "plain variables on a GPU" in caught.value.hint
        with pytest.raises(Unsupported) as caught:
            make(in_a_row([(4,)], device=FAR), Devices({}, {FAR: NOT_REACHED}), route=route)
        assert caught.value.hint == NOT_REACHED
    assert make([], reached(), route="direct").schedule.batches == ()
    both = Devices({FIRST: Device(FIRST), SECOND: Device(SECOND, NO_KERNELS)})
    assignments = [assignment(0, 0, (4,)), assignment(1, 100, (4,), device=SECOND)]
    with pytest.raises(Unsupported, match="needs kernels on the device") as caught:
        make(assignments, both, cut="scatter")
    assert caught.value.hint == NO_KERNELS


def test_casts_on_the_host_for_want_of_kernels_are_told():
    castable = in_a_row([(400,)], dtype="bfloat16")
    (text,) = make(castable, reached(kernels=False)).fallbacks
    assert NO_KERNELS in text
    # Kernels would not change a thing here.
    assert make(castable, reached(kernels=False), route="eager").fallbacks == ()
    split = in_a_row([(400,)], dtype="bfloat16", cut_at=10)
    assert make(split, reached(kernels=False)).fallbacks == ()
    assert make(castable, reached()).fallbacks == ()
