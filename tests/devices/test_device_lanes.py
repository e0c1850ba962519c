"""Lanes to devices: one for each, with bounded host memory, a window of device memory, and memory that is kept."""

import dataclasses
import errno
import mmap
import os
import threading
from collections import Counter

import keras
import pytest
import tensorflow as tf

import fastassign as fa
from fastassign.assigning.execute import execute
from fastassign.assigning.host import memory
from fastassign.devices import staging
from support import cards, simulated
from support import differential as d
from support.cards import PAGE, PLACES, SLOT, assert_loaded, tiny, variables

ONE, TWO = simulated.DEVICES


@pytest.fixture(scope="module")
def arrays():
    return cards.values()


@pytest.fixture(scope="module")
def path(arrays, tmp_path_factory):
    return cards.write(tmp_path_factory.mktemp("lanes") / "x.weights.h5", arrays)


class TestDevices:
    @pytest.mark.parametrize("route", ["auto", "direct", "fused"])
    @pytest.mark.parametrize("threads", [1, 3])
    def test_each_has_a_lane(self, driver, path, arrays, route, threads):
        made = variables(arrays, *PLACES)
        options = tiny(route=route, device_threads=threads)
        plan = fa.plan(made, path, options=options)
        assert {lane.device for lane in plan.schedule.lanes} == {ONE, TWO}
        report = plan.execute()
        assert_loaded(made, arrays)
        assert sum(report.routes.values()) == len(arrays)
        assert report.routes["arena"] > 0
        assert [stream.ordinal for stream in driver.streams] == [0, 1]

    @pytest.mark.parametrize("route", ["direct", "fused"])
    def test_each_copy_goes_into_the_stream_of_its_device(self, driver, path, arrays, route, monkeypatch):
        made = variables(arrays, *PLACES)
        where, wrong = {}, []
        allocated, put = driver.allocated, simulated.SimulatedStream._put

        def remember(tensor, address, device):
            allocated(tensor, address, device)
            where[address] = device

        def check(stream, op):
            if isinstance(op, simulated._Copy):
                start = max(address for address in where if address <= op.destination)
                wrong.extend([] if simulated.DEVICES.index(where[start]) == stream.ordinal else [op])
                seen[stream.ordinal] += 1
            put(stream, op)

        seen = Counter()
        monkeypatch.setattr(driver, "allocated", remember)
        monkeypatch.setattr(simulated.SimulatedStream, "_put", check)
        fa.load_weights(made, path, options=tiny(route=route))
        assert not wrong
        assert set(seen) == {0, 1}
        assert_loaded(made, arrays)

    def test_a_model_across_devices_as_stock_loads_it(self, driver, tmp_path):
        def build():
            inputs = x = keras.Input((8,))
            for i in range(9):
                with tf.device(PLACES[i % 3]):
                    x = keras.layers.Dense(8 + i, name=f"d{i}")(x)
            return keras.Model(inputs, x, name="m")

        path = d.saved(build, tmp_path / "x.weights.h5")
        for route in ("auto", "direct", "fused"):
            options = tiny(route=route)

            def load(model, path, options=options):
                return d.observe(lambda: fa.load_weights(model, path, options=options))

            found = d.check(build, path, loader=load)
            assert found.report.routes == {"arena": 6, "direct" if route == "direct" else "fused": 12}

    def test_casts_on_two_devices(self, driver, path, arrays):
        for route in ("auto", "direct", "fused"):
            made = variables(arrays, *PLACES[:2], dtype="bfloat16")
            fa.load_weights(made, path, options=tiny(route=route))
            assert_loaded(made, arrays)
        assert {stream.ordinal for stream in driver.streams} == {0, 1}

    def test_slots_are_shared_among_them(self, driver, path, arrays):
        for places, threads, slots in ((PLACES[:1], 4, 6), (PLACES[:2], 4, 4), (PLACES[:2], 1, 3)):
            plan = fa.plan(variables(arrays, *places), path, options=tiny(route="direct", device_threads=threads))
            assert [lane.slots for lane in plan.schedule.lanes] == [slots] * len(places)
            plan.execute()
            # The next load uses the memory of the one before.
            assert driver.lock_calls <= 8


class TestHostMemory:
    """A load never takes more than the plan says, and the plan never says more than the options allow."""

    @pytest.mark.parametrize("limit", [17_000, 40_000, 70_000, 120_000, 400_000, 8 << 20])
    @pytest.mark.parametrize("places", [PLACES[:1], PLACES[:2], PLACES], ids=["one", "two", "mixed"])
    @pytest.mark.parametrize("route", ["direct", "fused"])
    @pytest.mark.parametrize("threads", [1, 16])
    def test_any_limit(self, driver, path, arrays, monkeypatch, limit, places, route, threads):
        made = variables(arrays, *places)
        options = tiny(route=route, max_staging_bytes=limit, slot_bytes=1 << 16, device_threads=threads)
        try:
            plan = fa.plan(made, path, options=options)
        except fa.Budget as error:
            least = int(error.hint.partition("=")[2].partition(")")[0])
            assert least > limit
            plan = fa.plan(made, path, options=dataclasses.replace(options, max_staging_bytes=least))
            limit = least
        assert plan.staging_bytes <= limit
        taken = _watch_host(monkeypatch, driver)
        plan.execute()
        assert_loaded(made, arrays)
        assert 0 < taken["peak"] <= plan.staging_bytes

    def test_casts_take_no_more(self, driver, path, arrays, monkeypatch):
        made = variables(arrays, *PLACES[:2], dtype="float16")
        taken = _watch_host(monkeypatch, driver)
        for limit in (40_000, 150_000, 1 << 20):
            plan = fa.plan(made, path, options=tiny(max_staging_bytes=limit))
            plan.execute()
            assert_loaded(made, arrays)
            assert taken["peak"] <= plan.staging_bytes <= limit
            fa.release_buffers()

    def test_all_at_once_needs_more_and_says_so(self, driver, path, arrays):
        made = variables(arrays, *PLACES)
        with pytest.raises(fa.Budget) as caught:
            fa.plan(made, path, atomic=True, options=tiny(max_staging_bytes=70_000))
        least = int(caught.value.hint.partition("=")[2].partition(")")[0])
        plan = fa.plan(made, path, atomic=True, options=tiny(max_staging_bytes=least))
        assert plan.staging_bytes <= least
        plan.execute()
        assert_loaded(made, arrays)

    def test_one_slot_is_enough(self, driver, path, arrays):
        for route in ("direct", "fused"):
            for threads in (1, 8):
                made = variables(arrays, "CPU:1")
                how = {"route": route, "device_threads": threads}
                plan = fa.plan(made, path, options=tiny(**how, max_staging_bytes=2 * SLOT))
                assert [(lane.slots, lane.slot_bytes) for lane in plan.schedule.lanes] == [(2, SLOT)]
                one = fa.plan(made, path, options=tiny(**how, max_staging_bytes=SLOT, slot_bytes=1 << 20))
                assert [(lane.slots, lane.slot_bytes) for lane in one.schedule.lanes] == [(1, SLOT)]
                one.execute()
                assert_loaded(made, arrays)
                assert max(op.nbytes for op in driver.copies) <= SLOT

    def test_a_load_with_a_lower_limit_does_not_keep_more_memory(self, driver, path, arrays, monkeypatch):
        made = variables(arrays, "CPU:1")
        fa.load_weights(made, path, options=tiny(device_threads=14))
        assert driver.pool.idle_bytes > 2 * SLOT
        fa.load_weights(made, path, options=tiny(max_staging_bytes=2 * SLOT))
        assert driver.pool.idle_bytes <= 2 * SLOT


def _watch_host(monkeypatch, driver):
    """Count the host memory that is taken at a time: the pool's, and TensorFlow's for values that are being read."""
    import weakref

    taken = {"now": 0, "peak": 0}
    lock, allocate, lend = threading.RLock(), memory.empty, driver.pool.lease

    def note(nbytes=0):
        with lock:
            taken["now"] += nbytes
            pool = driver.pool.leased_bytes + driver.pool.idle_bytes
            taken["peak"] = max(taken["peak"], taken["now"] + pool)

    def empty(shape, dtype):
        tensor, array = allocate(shape, dtype)
        note(array.nbytes)
        weakref.finalize(tensor, note, -array.nbytes).atexit = False
        return tensor, array

    def lease(*arguments, **how):
        lent = lend(*arguments, **how)
        note()
        return lent

    monkeypatch.setattr(memory, "empty", empty)
    monkeypatch.setattr(driver.pool, "lease", lease)
    return taken


class TestDeviceMemory:
    @pytest.mark.parametrize("window", [1, 20_000, 70_000, 200_000, 1 << 20])
    @pytest.mark.parametrize("cut", ["split", "function", "scatter"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_one_window_beyond_the_variables(self, driver, path, arrays, window, cut, dtype):
        for route in ("direct", "fused"):
            made = variables(arrays, *PLACES[:2], dtype=dtype)
            driver.peaks.clear()
            plan = fa.plan(made, path, options=tiny(route=route, cut=cut, device_window_bytes=window))
            plan.execute()
            assert_loaded(made, arrays)
            for lane in plan.schedule.lanes:
                assert 0 < driver.peaks[lane.device] <= max(lane.peak_bytes, 64)
                largest = max(batch.device_bytes for batch in plan.schedule.batches if batch.lane == lane.device)
                twins = lane.ring_bytes if lane.staged else 0
                assert lane.peak_bytes <= max(window, largest) + twins
        assert not any(driver.taken.values())

    def test_values_that_are_read_first_take_memory_all_at_once(self, driver, path, arrays):
        made = variables(arrays, *PLACES)
        plan = fa.plan(made, path, atomic=True, options=tiny(device_window_bytes=1))
        plan.execute()
        for lane in plan.schedule.lanes:
            own = sum(v.dtype.size * v.shape.num_elements() for v in made.values() if v.device == lane.device)
            assert own <= driver.peaks[lane.device] <= lane.peak_bytes

    def test_addresses_are_asked_for_when_a_window_is_complete(self, driver, path, arrays):
        """Asking waits for the device; memory that is allocated afterwards may still be in use."""
        made = variables(arrays, "CPU:1")
        for route in ("direct", "fused"):
            driver.events.clear()
            fa.load_weights(made, path, options=tiny(route=route, cut="scatter", device_window_bytes=1 << 30))
            kinds = [kind for kind, _ in driver.events]
            assert kinds[:2] == ["empty", "address"]  # the tensor that tells the device's number
            assert kinds[2:] == sorted(kinds[2:], reverse=True)
            assert kinds.count("empty") == kinds.count("address") > 5

    def test_twins_stand_on_the_device_where_values_are_cast(self, driver, path, arrays):
        made = variables(arrays, "CPU:1", dtype="bfloat16")
        (lane,) = fa.plan(made, path, options=tiny(route="direct")).schedule.lanes
        assert lane.staged
        (lane,) = fa.plan(variables(arrays, "CPU:1"), path, options=tiny(route="direct")).schedule.lanes
        assert not lane.staged


class TestPieces:
    @pytest.mark.parametrize("threads", [1, 2, 8])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize("slot_bytes", [SLOT, 17_000, 28_672])
    def test_a_large_value_arrives_in_pieces(self, driver, path, arrays, threads, dtype, slot_bytes):
        large = {name: value for name, value in arrays.items() if value.nbytes > 33_000}
        made = variables(large, "CPU:1", dtype=dtype)
        options = tiny(slot_bytes=slot_bytes, device_threads=threads)
        report = fa.load_weights(made, path, options=options)
        assert_loaded(made, arrays)
        assert report.routes == {"direct": len(large)}
        room = -(-slot_bytes // PAGE) * PAGE
        assert max(op.nbytes for op in driver.copies) <= room
        assert len(driver.copies) >= sum(value.nbytes for value in large.values()) // room

    def test_several_threads_send(self, driver, path, arrays, monkeypatch):
        threads, began = {}, driver.began_copy
        second = threading.Event()

        def note(op):
            threads[threading.get_ident()] = True
            if len(threads) > 1:
                second.set()
            second.wait(120)
            began(op)

        monkeypatch.setattr(driver, "began_copy", note)
        made = variables(arrays, "CPU:1")
        fa.load_weights(made, path, options=tiny(route="direct", device_threads=3))
        assert len(threads) > 1
        assert_loaded(made, arrays)


class TestKeptMemory:
    def test_the_next_load_locks_nothing(self, driver, path, arrays):
        made = variables(arrays, *PLACES)
        fa.load_weights(made, path, options=tiny())
        calls = driver.lock_calls
        assert calls > 0
        for _ in range(3):
            fa.load_weights(made, path, options=tiny())
        assert driver.lock_calls == calls
        assert_loaded(made, arrays)

    def test_release_buffers_unlocks(self, driver, path, arrays):
        made = variables(arrays, "CPU:1")
        fa.load_weights(made, path, options=tiny())
        assert driver.locked
        assert driver.pool.idle_bytes == sum(driver.locked.values())
        fa.release_buffers()
        assert not driver.locked
        assert driver.pool.idle_bytes == 0
        fa.load_weights(made, path, options=tiny())
        assert_loaded(made, arrays)

    def test_release_buffers_leaves_memory_in_use(self, driver, path, arrays):
        made = variables(arrays, "CPU:1")
        options = tiny(route="direct", device_window_bytes=1)
        seen = []

        def progress(event):
            fa.release_buffers()
            seen.append(len(driver.locked))

        report = fa.load_weights(made, path, options=options, progress=progress)
        assert report.assigned == len(arrays)
        assert min(seen) > 0
        assert_loaded(made, arrays)

    def test_idle_memory_of_another_size_makes_room(self, driver, path, arrays):
        made = variables(arrays, "CPU:1")
        for slot_bytes in (SLOT, 2 * SLOT, 3 * SLOT, SLOT):
            plan = fa.plan(made, path, options=tiny(slot_bytes=slot_bytes, max_staging_bytes=8 * SLOT))
            plan.execute()
            assert sum(driver.locked.values()) <= 8 * SLOT
            assert_loaded(made, arrays)

    def test_memory_that_is_not_locked_does_not_serve_as_locked(self, driver, path, arrays):
        made = variables(arrays, "CPU:1")
        fa.load_weights(made, path, options=tiny(page_lock=False))
        assert not driver.lock_calls
        fa.load_weights(made, path, options=tiny())
        assert driver.lock_calls > 0
        assert_loaded(made, arrays)


class TestPool:
    def lease(self, pool, nbytes=PAGE, limit=1 << 20, locker=None):
        return pool.lease(nbytes, owner="a test", locker=locker, limit_bytes=limit)

    def test_a_buffer_is_given_back_once(self):
        pool = staging.StagingPool()
        buffer = self.lease(pool)
        with pytest.raises(fa.Budget, match="4096 are leased to a test"):
            self.lease(pool, limit=PAGE)
        buffer.give_back()
        with pytest.raises(RuntimeError, match="given back before"):
            buffer.give_back()
        again = self.lease(pool)
        assert again.address == buffer.address
        with pytest.raises(RuntimeError, match="given back before"):
            buffer.give_back()
        again.give_back()
        assert (pool.leased_bytes, pool.idle_bytes) == (0, PAGE)

    def test_a_kernel_without_huge_pages_will_do(self, monkeypatch):
        class Pages(mmap.mmap):
            def madvise(self, *_):
                raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(mmap, "mmap", Pages)
        pool = staging.StagingPool()
        buffer = self.lease(pool)
        buffer.memory[:] = 1
        buffer.give_back()
        assert pool.idle_bytes == PAGE

    def test_whole_pages_that_nobody_else_has(self):
        pool = staging.StagingPool()
        buffers = [self.lease(pool, nbytes) for nbytes in (1, PAGE, PAGE + 1)]
        assert [buffer.memory.nbytes for buffer in buffers] == [PAGE, PAGE, 2 * PAGE]
        assert len({buffer.address for buffer in buffers}) == 3
        assert all(buffer.address % PAGE == 0 for buffer in buffers)
        for buffer in buffers:
            buffer.give_back()

    def test_never_more_than_the_limit(self):
        pool = staging.StagingPool()
        held = [self.lease(pool, limit=4 * PAGE) for _ in range(4)]
        with pytest.raises(fa.Budget, match="are leased to a test"):
            self.lease(pool, limit=4 * PAGE)
        for buffer in held:
            buffer.give_back()
        assert pool.idle_bytes == 4 * PAGE
        buffer = self.lease(pool, limit=2 * PAGE)
        assert pool.leased_bytes + pool.idle_bytes <= 2 * PAGE
        buffer.give_back()

    def test_idle_memory_does_not_get_round_the_limit(self):
        pool = staging.StagingPool()
        held = [self.lease(pool) for _ in range(3)]
        held.pop().give_back()
        with pytest.raises(fa.Budget):
            self.lease(pool, limit=2 * PAGE)
        for buffer in held:
            buffer.give_back()

    def test_a_child_process_starts_anew(self):
        driver = simulated.SimulatedDriver()
        pool = staging.StagingPool()
        driver.pool = pool
        locker = staging.Locker(driver, 0)
        buffer, idle = self.lease(pool, locker=locker), self.lease(pool, locker=locker)
        idle.give_back()
        buffer.memory[:] = 7
        child = os.fork()
        if not child:
            try:
                clean = (pool.leased_bytes, pool.idle_bytes) == (0, 0)
                own = self.lease(pool)
                own.memory[:] = 9
                own.give_back()
                pool.release()
                os._exit(0 if clean and len(driver.locked) == 2 else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert set(buffer.memory) == {7}
        buffer.give_back()
        pool.release()
        assert not driver.locked

    def test_many_threads(self):
        pool = staging.StagingPool()
        wrong = []

        def work(number):
            for _ in range(200):
                buffer = self.lease(pool)
                buffer.memory[:8] = number
                if set(buffer.memory[:8]) != {number}:
                    wrong.append(number)
                buffer.give_back()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert pool.leased_bytes == 0
        assert pool.idle_bytes <= 6 * PAGE


def test_execute_opens_lanes_of_a_plan_again(driver, path, arrays):
    made = variables(arrays, *PLACES)
    plan = fa.plan(made, path, options=tiny())
    for _ in range(2):
        for variable in made.values():
            variable.assign(tf.ones(variable.shape))
        execute(plan)
        assert_loaded(made, arrays)
    assert len(driver.streams) == 4


def test_with_asynchronous_ops_the_device_is_waited_for_when_the_tensor_is_there(driver, path, arrays, monkeypatch):
    """TensorFlow waits for the device before it waits for the op, so the address is asked for twice."""
    asked = Counter()
    export = tf.experimental.dlpack.to_dlpack

    def to_dlpack(tensor):
        asked[tensor._id] += 1
        return export(tensor)

    made = variables(arrays, "CPU:1")
    monkeypatch.setattr(tf.experimental.dlpack, "to_dlpack", to_dlpack)
    tf.config.experimental.set_synchronous_execution(False)
    try:
        fa.load_weights(made, path, options=tiny(route="direct"))
    finally:
        tf.config.experimental.set_synchronous_execution(True)
    assert len(asked) > 5
    assert all(count % 2 == 0 for count in asked.values())
    assert_loaded(made, arrays)
