"""The simulated device notices the classic errors: each one, put into the code, spoils a load or is a violation."""

import re

import pytest

import fastassign as fa
from fastassign.assigning.device.direct import DirectBatch
from fastassign.assigning.device.slab import SlabBatch
from fastassign.devices.ring import Ring
from fastassign.devices.staging import StagingBuffer
from fastassign.errors import ReadFailed
from support import cards, faults, simulated
from support.cards import ROUTES, SLOT, assert_loaded, tiny, variables
from support.running import with_source


@pytest.fixture(scope="module")
def new():
    return cards.values()


@pytest.fixture(scope="module")
def path(new, tmp_path_factory):
    return cards.write(tmp_path_factory.mktemp("simulator") / "x.weights.h5", new)


@pytest.fixture
def load(monkeypatch, path, new):
    """Return a function that loads on a simulated device, and raises the errors that the device notices."""

    def load(route, cut="auto", *, source=lambda source: source, failure=(), dtype="float32", **how):
        made = variables(new, "CPU:1", dtype=dtype)

        # One slot of memory, so that everything goes through it; small windows.
        small = {"max_staging_bytes": SLOT, "device_threads": 1, "device_window_bytes": 2 * SLOT, **how}
        with simulated.simulated(monkeypatch) as driver:
            plan = fa.plan(made, path, options=tiny(route=route, cut=cut, **small))
            try:
                with_source(plan, driver.watched(source)).execute()
                assert_loaded(made, new)
            except failure:
                pass
        return driver

    return load


@ROUTES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_correct_code_has_no_violations(load, route, cut, dtype):
    driver = load(route, cut, dtype=dtype)
    assert not driver.violations
    load(route, cut, dtype=dtype, device_threads=4, max_staging_bytes=8 * SLOT)


def caught(match):
    """Expect the simulator, or the comparison of values, to notice."""
    return pytest.raises(AssertionError, match=re.compile(match, re.DOTALL))


@ROUTES
def test_a_slot_that_is_filled_again_too_early(load, monkeypatch, route, cut):
    def take(ring):
        with ring._changed:
            return (ring._free or ring._copied).pop()

    monkeypatch.setattr(Ring, "_take", take)
    with caught(r"^v\d\d|read into while it was copied from"):
        load(route, cut, device_window_bytes=1 << 30)


@ROUTES
def test_values_that_are_assigned_before_they_are_there(load, monkeypatch, route, cut):
    for kind in (DirectBatch, SlabBatch):
        monkeypatch.setattr(kind, "settle", lambda batch: None)
    with caught(r"^v\d\d|that is not the load's|beyond its memory"):
        load(route, cut)
    with caught(r"^v\d\d|that is not the load's|beyond its memory"):
        load(route, cut, dtype="bfloat16")


def test_memory_that_is_given_back_while_it_is_copied_from(load, monkeypatch, path):
    # The disk fails in the middle of a value: pieces before it are on their way.
    record = fa.inspect(path).contents.records["v08"]
    fault = faults.fails_at(record.extents[0].offset + 3 * SLOT)
    with pytest.raises(ReadFailed):
        load("direct", source=fault, max_staging_bytes=8 * SLOT)
    monkeypatch.setattr(Ring, "close", lambda ring: ring._give_back(ring._slots))
    with caught("a stream was closed with work in it"):
        load("direct", source=fault, failure=ReadFailed, max_staging_bytes=8 * SLOT)


@ROUTES
def test_a_fence_before_the_copy(load, monkeypatch, route, cut):
    record = simulated.SimulatedStream.record

    def too_early(stream):
        fence = record(stream)
        fence._position -= 1
        return fence

    monkeypatch.setattr(simulated.SimulatedStream, "record", too_early)
    with caught(r"^v\d\d|read into while|with work in it|not the load's|beyond its memory"):
        load(route, cut)


@ROUTES
def test_memory_that_is_not_given_back(load, monkeypatch, route, cut):
    monkeypatch.setattr(StagingBuffer, "give_back", lambda buffer: None)
    with caught("leased_bytes"):
        load(route, cut)


@ROUTES
def test_a_stream_that_stays_open(load, monkeypatch, route, cut):
    monkeypatch.setattr(simulated.SimulatedStream, "close", lambda stream: None)
    with caught("was not closed"):
        load(route, cut)


def test_a_thread_that_is_not_in_the_devices_context(load, monkeypatch):
    monkeypatch.setattr(simulated.SimulatedStream, "__enter__", lambda stream: stream)
    monkeypatch.setattr(simulated.SimulatedStream, "__exit__", lambda *_: None)
    with caught("context"):
        load("direct")


@pytest.mark.parametrize("route", ["direct", "fused"])
def test_a_copy_from_a_wrong_address(load, monkeypatch, route):
    copy = simulated.SimulatedStream.copy

    def shifted(stream, destination, source, nbytes):
        copy(stream, destination, source + 4096, nbytes)

    monkeypatch.setattr(simulated.SimulatedStream, "copy", shifted)
    with caught(r"^v\d\d|given back|beyond its memory"):
        load(route)
