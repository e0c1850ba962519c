"""Loads to devices that fail: the error tells the state exactly, all memory comes back, and the next load works."""

import gc
import threading
from contextlib import contextmanager
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastassign as fa
from fastassign.devices.discover import find_devices
from fastassign.devices.driver import Missing
from fastassign.errors import DeviceFailed, DeviceMemory, NotPageLocked, ReadFailed, Unsupported
from fastassign.kernels.scatter import available
from fastassign.matching.assignment import Assignment, Matching
from fastassign.matching.match import Request
from fastassign.pipeline import LoadSpec
from fastassign.planning import batches
from fastassign.runtime import process_runtime
from fastassign.targets.target import Target
from support import attacks, cards, faults, simulated
from support.cards import PLACES, ROUTES, SLOT, assert_loaded, assert_state, contents, tiny, variables
from support.options import load_options
from support.running import with_source

THREADS = pytest.mark.parametrize("threads", [1, 4])
GPU = "/job:localhost/replica:0/task:0/device:GPU:0"


@pytest.fixture(scope="module")
def new():
    return cards.values()


@pytest.fixture(scope="module")
def path(new, tmp_path_factory):
    path = cards.write(tmp_path_factory.mktemp("faults") / "x.weights.h5", new)
    attacks.settle(path)
    return path


@pytest.fixture
def made(new):
    return variables(new, *PLACES)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Let there be a before and an after."""
    monkeypatch.setattr(batches, "BATCH_BYTES", SLOT)


@contextmanager
def fails(driver, made, new, kind, **how):
    """Expect a load to fail, exactly as far as it says, and the next one to work; yields what gets the path."""
    old, loader = contents(made), {}
    with pytest.raises(kind, **how) as caught:
        yield loader
    error = caught.value
    assert_state(made, error.assigned, old, new)
    assert driver.pool.leased_bytes == 0
    assert all(stream.is_closed for stream in driver.streams)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastassign-reader")]
    loader["error"] = error
    driver.repair()
    cards.reset(made)
    fa.load_weights(made, loader["path"], options=tiny())
    assert_loaded(made, new)
    cards.reset(made)


class TestDisk:
    @ROUTES
    @THREADS
    @pytest.mark.parametrize("make", [faults.fails_at, faults.ends_at])
    def test_an_error_names_what_was_assigned(self, driver, path, new, route, cut, threads, make):
        made = variables(new, *PLACES[:2])
        plan = fa.plan(made, path, options=tiny(route=route, cut=cut, device_threads=threads, device_window_bytes=1))
        extents = sorted(record.extents[0].offset for record in fa.inspect(path).contents.records.values())
        counts = set()
        for position in extents[:: len(extents) // 5]:
            kind = ReadFailed if make is faults.fails_at else fa.Truncated
            with fails(driver, made, new, kind) as about:
                about["path"] = path
                with_source(plan, driver.watched(make(position))).execute()
            assert about["error"].file == str(path)
            counts.add(len(about["error"].assigned))
        assert len(counts) > 1

    @ROUTES
    @THREADS
    def test_short_and_interrupted_reads(self, driver, path, made, new, route, cut, threads):
        options = tiny(route=route, cut=cut, device_threads=threads)
        for make in (faults.random_shares(3), faults.interrupted(), faults.nasty_by_thread(), faults.slow(0.001)):
            cards.reset(made)
            with_source(fa.plan(made, path, options=options), driver.watched(make)).execute()
            assert_loaded(made, new)

    def test_a_file_that_changes(self, driver, made, new, tmp_path):
        path = cards.write(tmp_path / "x.weights.h5", new)
        attacks.settle(path)
        plan = fa.plan(made, path, options=tiny(device_window_bytes=1))

        def before(number, *_):
            if number == 6:
                path.touch()

        old = contents(made)
        with pytest.raises(fa.Changed) as caught:
            with_source(plan, driver.watched(faults.faulty(before=before))).execute()
        assert_state(made, caught.value.assigned, old, new)
        assert driver.pool.leased_bytes == 0


class TestLostDevice:
    @ROUTES
    @THREADS
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_at_any_copy(self, driver, path, new, route, cut, threads, dtype):
        made = variables(new, *PLACES, dtype=dtype)
        options = tiny(route=route, cut=cut, device_threads=threads, device_window_bytes=3 * SLOT)
        fa.load_weights(made, path, options=options)
        total = len(driver.copies)
        assert total > 5
        counts = set()
        for number in range(1, total + 1, max(total // 6, 1)):
            cards.reset(made)
            driver.copies.clear()
            driver._fails_at = number
            with fails(driver, made, new, DeviceFailed, match="is lost") as about:
                about["path"] = path
                fa.load_weights(made, path, options=options)
            error = about["error"]
            assert (error.file, error.hint) == (str(path), "simulated")
            counts.add(len(error.assigned))
        # Several threads may be at the last copy before the first value is assigned.
        assert len(counts) > 1 or threads > 1

    @ROUTES
    def test_atomic_takes_everything_back(self, driver, path, made, new, route, cut):
        driver._fails_at = 4
        with fails(driver, made, new, DeviceFailed) as about:
            about["path"] = path
            fa.load_weights(made, path, atomic=True, options=tiny(route=route, cut=cut))
        assert about["error"].assigned == ()

    def test_before_the_first_copy(self, driver, path, made, new):
        driver.lose()
        with fails(driver, made, new, DeviceFailed) as about:
            about["path"] = path
            fa.load_weights(made, path, options=tiny())
        assert about["error"].assigned == ()

    def test_while_a_slot_is_waited_for(self, driver, path, new, monkeypatch):
        made = variables(new, "CPU:1")
        waits = []

        def wait(fence, inner=simulated.SimulatedFence.wait):
            waits.append(fence)
            if len(waits) == 3:
                driver.lose()
            inner(fence)

        monkeypatch.setattr(simulated.SimulatedFence, "wait", wait)
        options = tiny(route="direct", max_staging_bytes=SLOT, device_threads=3)
        with fails(driver, made, new, DeviceFailed) as about:
            about["path"] = path
            fa.load_weights(made, path, options=options)
        assert len(waits) > 3

    def test_when_a_plan_is_carried_out_without_a_driver(self, driver, path, made, new):
        plan = fa.plan(made, path, options=tiny())
        old = contents(made)
        missing = Missing("it was taken out", "put it back")
        without = replace(plan, runtime=replace(plan.runtime, find_driver=lambda: missing))
        with pytest.raises(DeviceFailed, match="it was taken out") as caught:
            without.execute()
        assert caught.value.hint == "put it back"
        assert_state(made, (), old, new)


@ROUTES
@THREADS
def test_memory_on_the_device_goes_with_the_error(driver, path, new, route, cut, threads):
    made = variables(new, "CPU:1")
    for number in (2, 4, 5):
        driver._fails_at = len(driver.copies) + number
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(DeviceFailed):
                fa.load_weights(made, path, options=tiny(route=route, cut=cut, device_threads=threads))
            assert not any(driver.taken.values())
        finally:
            gc.enable()
        driver.repair()


class TestPageLocks:
    @ROUTES
    @pytest.mark.parametrize("slots", [0, 1, 2.5])
    def test_without_is_exact_and_said(self, monkeypatch, path, made, new, route, cut, slots):
        with simulated.simulated(monkeypatch, lockable_bytes=slots * SLOT) as driver:
            plan = fa.plan(made, path, options=tiny(route=route, cut=cut, max_staging_bytes=1 << 20))
            report = plan.execute()
            assert_loaded(made, new)
            assert 1 <= len(report.fallbacks) <= 2
            assert all("not page-locked" in text for text in report.fallbacks)
            assert driver.pool.idle_bytes <= plan.staging_bytes

    def test_insisting(self, monkeypatch, path, made, new):
        with simulated.simulated(monkeypatch, lockable_bytes=SLOT) as driver:
            old = contents(made)
            with pytest.raises(NotPageLocked) as caught:
                fa.load_weights(made, path, options=tiny(page_lock=True))
            assert caught.value.file == str(path)
            assert_state(made, (), old, new)
            assert caught.value.assigned == ()
            assert driver.pool.leased_bytes == 0

    def test_insisting_comes_before_layers_that_load_themselves(self, monkeypatch, tmp_path):
        @keras.saving.register_keras_serializable("fastassign-tests")
        class Own(keras.layers.Dense):
            def load_own_variables(self, store):
                self.kernel.assign(store["0"][()])
                self.bias.assign(store["1"][()])

        def build():
            with tf.device("CPU:1"):
                return keras.Sequential([keras.Input((4,)), Own(6), keras.layers.Dense(3)])

        path = tmp_path / "x.weights.h5"
        build().save_weights(path)
        model = build()
        old = [np.asarray(v) for v in model.weights]
        with simulated.simulated(monkeypatch, lockable_bytes=0):
            with pytest.raises(NotPageLocked) as caught:
                fa.load_weights(model, path, options=tiny(page_lock=True))
            assert caught.value.assigned == ()
        assert all(np.array_equal(v, before) for v, before in zip(model.weights, old, strict=True))

    def test_going_without(self, driver, path, made, new):
        report = fa.load_weights(made, path, options=tiny(page_lock=False))
        assert_loaded(made, new)
        assert not driver.lock_calls
        assert not report.fallbacks

    def test_idle_memory_makes_room(self, monkeypatch, path, new):
        made = variables(new, "CPU:1")
        with simulated.simulated(monkeypatch, lockable_bytes=8 * SLOT):
            for slot_bytes in (SLOT, 2 * SLOT, SLOT):
                report = fa.load_weights(made, path, options=tiny(slot_bytes=slot_bytes, page_lock=True))
                assert not report.fallbacks
            assert_loaded(made, new)


class TestDeviceMemory:
    @ROUTES
    def test_named_with_the_knob(self, driver, path, made, new, route, cut, monkeypatch):
        options = tiny(route=route, cut=cut, device_window_bytes=1)
        allocate, calls = tf.raw_ops.Empty, []

        def empty(**how):
            calls.append(how)
            if len(calls) == limits[-1]:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nand much more")
            return allocate(**how)

        limits = [0]
        monkeypatch.setattr(tf.raw_ops, "Empty", empty)
        fa.load_weights(made, path, options=options)
        counts, total = set(), len(calls)
        for limit in range(1, total + 1, max(total // 6, 1)):
            limits.append(limit)
            cards.reset(made)
            calls.clear()
            old = contents(made)
            with pytest.raises((DeviceMemory, tf.errors.ResourceExhaustedError)) as caught:
                fa.load_weights(made, path, options=options)
            error = caught.value
            assert_state(made, error.assigned, old, new)
            counts.add(len(error.assigned))
            assert driver.pool.leased_bytes == 0
            if isinstance(error, DeviceMemory):
                assert error.file == str(path)
                assert "DeviceOptions(window_bytes=)" in error.hint
                assert str(error).endswith("OOM when allocating")
        assert len(counts) > 1

    def test_while_values_are_cut_up(self, driver, path, new, monkeypatch):
        made = variables(new, "CPU:1")

        def no_room(**_):
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")

        old = contents(made)
        with monkeypatch.context() as patch:
            patch.setattr(tf.raw_ops, "Slice", no_room)
            with pytest.raises(DeviceMemory) as caught:
                fa.load_weights(made, path, options=tiny(route="fused", cut="split"))
        named = {name.removesuffix(":0") for name in caught.value.assigned}
        now = contents(made)
        # Which of a batch it reached is not known: more may be named than changed, never less.
        assert all(name in named for name in made if now[name].tobytes() != old[name].tobytes())
        assert driver.pool.leased_bytes == 0


class TestInterrupts:
    @ROUTES
    @THREADS
    @pytest.mark.parametrize("where", ["began_copy", "record", "wait", "preadv", "copied"])
    def test_anywhere(self, driver, path, new, made, route, cut, threads, where, monkeypatch):
        options = tiny(route=route, cut=cut, device_threads=threads, device_window_bytes=2 * SLOT)
        calls, moments = [], []

        def interrupt(function):
            def wrapped(*arguments, **how):
                calls.append(where)
                result = function(*arguments, **how) if where == "copied" else None
                if len(calls) == moments[-1]:
                    raise KeyboardInterrupt
                return result if where == "copied" else function(*arguments, **how)

            return wrapped

        places = {
            "began_copy": (simulated.SimulatedDriver, "began_copy"),
            "record": (simulated.SimulatedStream, "record"),
            "copied": (simulated.SimulatedStream, "copy"),
            "wait": (simulated.SimulatedFence, "wait"),
            "preadv": (faults.Faulty, "preadv"),
        }
        for moment in (1, 3, 4):
            moments.append(moment)
            calls.clear()
            plan = fa.plan(made, path, options=options)
            with fails(driver, made, new, KeyboardInterrupt) as about:
                about["path"] = path
                with monkeypatch.context() as patch:
                    target, name = places[where]
                    patch.setattr(target, name, interrupt(getattr(target, name)))
                    with_source(plan, driver.watched(faults.faulty())).execute()
            assert about["error"].__notes__

    def test_again_while_it_stops(self, driver, path, new, made, monkeypatch):
        """Whoever is impatient presses Ctrl-C twice: the device copies all the same."""
        wait, calls = simulated.SimulatedFence.wait, []

        def interrupted(fence):
            calls.append(fence)
            if len(calls) in {2, 3, 4}:
                raise KeyboardInterrupt
            wait(fence)

        with fails(driver, made, new, KeyboardInterrupt) as about:
            about["path"] = path
            with monkeypatch.context() as patch:
                patch.setattr(simulated.SimulatedFence, "wait", interrupted)
                fa.load_weights(made, path, options=tiny(route="direct", device_threads=1))
        assert len(calls) > 4


class TestThreads:
    def test_two_loads_to_one_device_at_a_time(self, driver, path, new, tmp_path):
        other = cards.values(seed=1)
        paths = [path, cards.write(tmp_path / "other.weights.h5", other)]
        models = [variables(new, *PLACES), variables(new, *PLACES)]
        both, errors = threading.Barrier(2, timeout=120), []

        def load(number):
            try:
                for route in ("direct", "fused", "auto"):
                    both.wait()
                    with driver.ops:
                        cards.reset(models[number])
                    fa.load_weights(models[number], paths[number], options=tiny(route=route))
                    with driver.ops:
                        assert_loaded(models[number], (new, other)[number])
            except BaseException as error:  # noqa: BLE001 - told below
                errors.append(error)
                both.abort()

        threads = [threading.Thread(target=load, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert len(driver.streams) == 12

    def test_no_room_for_two(self, driver, path, new):
        models = [variables(new, "CPU:1"), variables(new, "CPU:1")]
        options = tiny(max_staging_bytes=3 * SLOT, device_threads=1)

        def progress(event):
            old = contents(models[1])
            with pytest.raises(fa.Budget, match="are leased to a load to") as caught:
                fa.load_weights(models[1], path, options=options)
            assert caught.value.assigned == ()
            assert_state(models[1], (), old, new)
            told.append(caught.value.hint)

        told = []
        fa.load_weights(models[0], path, options=options, progress=progress)
        assert "one model after the other" in told[0]
        assert_loaded(models[0], new)

    def test_a_load_in_the_background_is_cancelled(self, driver, path, made, new, monkeypatch):
        began, go_on = threading.Event(), threading.Event()
        inner = driver.began_copy

        def held(op):
            inner(op)
            began.set()
            assert go_on.wait(120)

        monkeypatch.setattr(driver, "began_copy", held)
        old = contents(made)
        with fa.Loader(made, options=tiny(device_threads=1)) as loader:
            future = loader.load_async(path)
            assert began.wait(120)
            assert future.cancel()
            go_on.set()
            with pytest.raises(fa.Cancelled):
                future.result(30)
            assert_state(made, (), old, new)
            assert driver.pool.leased_bytes == 0
            loader.load(path)
        assert_loaded(made, new)


def planned(path, find_driver, *, dtype="float32", device=GPU, **how):
    """Plan a load of a file into variables that do not exist, on a device that does not."""
    catalog = fa.inspect(path)
    assignments = {}
    for record in catalog.contents.records.values():
        target = Target(record.key, record.shape, dtype, object(), object(), device)
        assignments[id(target)] = Assignment(record, target, "same" if dtype == "float32" else "cast")
    matching = Matching(library="tensorflow", layout="named", assignments=assignments)
    runtime = replace(process_runtime(), find_driver=find_driver)
    spec = LoadSpec(model=None, request=Request(), options=load_options(**how), runtime=runtime)
    return spec.plan_matching(catalog, matching, {})


class TestWithoutADriver:
    @staticmethod
    def planned(path, **how):
        return planned(path, lambda: Missing("there is none", "get one"), **how)

    def test_values_go_by_tensorflows_own_copy_and_the_plan_says_so(self, path):
        plan = self.planned(path)
        assert {row[3] for row in plan.rows()} == {"eager"}
        assert not plan.schedule.lanes
        (text,) = plan.fallbacks
        assert text.startswith(f"{GPU}: there is none")
        assert "get one" in text
        assert f"fallback: {text}" in str(plan)
        assert plan.to_dict()["fallback"] == [text]

    @pytest.mark.parametrize("route", ["direct", "fused"])
    def test_no_route_of_ours(self, path, route):
        with pytest.raises(Unsupported, match=f'can take the route "{route}"') as caught:
            self.planned(path, route=route)
        assert "get one" in caught.value.hint
        assert caught.value.file == str(path)

    def test_the_hosts_devices_need_none(self):
        def missing():
            return Missing("there is none", "get one")

        def asked():
            raise AssertionError("nobody needs a driver")

        assert find_devices(["/job:localhost/replica:0/task:0/device:TPU:0"], missing, kernels=True).fallbacks == {}
        assert find_devices(["", simulated.HOST], asked, kernels=True).reached == {}


class TestChoices:
    @pytest.fixture(autouse=True)
    def with_gpu(self):
        class Card(simulated.SimulatedDriver):
            def serves(self, device):
                return device == GPU

        self.driver = Card(kernels=False)

    def planned(self, path, **how):
        return planned(path, lambda: self.driver, **how)

    def test_without_kernels_casts_go_by_the_library(self, path):
        plan = self.planned(path, dtype="bfloat16")
        assert {row[3] for row in plan.rows()} == {"assign (cast from <f4)"}
        (text,) = plan.fallbacks
        assert "simulated without" in text
        assert {row[3] for row in self.planned(path).rows()} <= {"direct", "fused"}

    def test_with_kernels_the_device_casts(self, path):
        self.driver = simulated.SimulatedDriver()
        self.driver.serves = lambda device: device == GPU
        plan = self.planned(path, dtype="bfloat16")
        assert {row[3] for row in plan.rows()} <= {"direct (cast from <f4)", "fused (cast from <f4)"}
        assert not plan.fallbacks

    def test_scatter_needs_kernels(self, path):
        with pytest.raises(Unsupported, match="needs kernels") as caught:
            self.planned(path, cut="scatter")
        assert "simulated without" in caught.value.hint
        assert {batch.cut for batch in self.planned(path).schedule.batches if batch.route == "fused"} <= {
            "split",
            "function",
        }

    @pytest.mark.parametrize("dtype", ["int32", "bool", "float8_e4m3fn"])
    def test_nothing_that_a_route_takes(self, path, dtype):
        for route in ("direct", "fused"):
            with pytest.raises(Unsupported, match=route):
                self.planned(path, dtype=dtype, route=route)

    def test_eager_where_asked_for(self, path):
        assert {row[3] for row in self.planned(path, route="eager").rows()} == {"eager"}

    @pytest.mark.parametrize("device", ["/job:worker/replica:0/task:1/device:GPU:0", GPU.replace("GPU:0", "GPU:1")])
    def test_another_device_is_none_of_the_drivers(self, path, device):
        assert {row[3] for row in self.planned(path, device=device).rows()} == {"eager"}


def test_kernels_say_why_they_do_not_run_here():
    assert available()
