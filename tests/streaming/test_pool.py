"""The pool of aligned memory by itself: every byte has one owner."""

import gc
import threading

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastassign.streaming.buffers import ArenaPool, is_aligned
from support.profiles import cases


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 1000, 1 << 20])
def test_pool_memory_is_aligned_and_writable(nbytes):
    pool = ArenaPool()
    for _ in range(3):
        array = pool.lease(nbytes)
        assert array.shape == (nbytes,) and array.dtype == np.uint8
        assert is_aligned(array) or not nbytes
        array[:] = 7


def test_pool_gives_memory_again():
    pool = ArenaPool()
    array = pool.lease(1000)
    where = address(array)
    assert pool.idle_bytes == 0
    del array
    assert pool.idle_bytes == 1000
    array = pool.lease(1000)
    assert address(array) == where and pool.idle_bytes == 0


@pytest.mark.parametrize(
    "view", [lambda a: a[10:], lambda a: a.view(np.float32), lambda a: np.ndarray((5,), "f8", a, 64), memoryview,
             lambda a: a[:0], lambda a: a.reshape(10, -1).T]
)  # fmt: skip
def test_views_keep_pool_memory(view):
    pool = ArenaPool()
    array = pool.lease(1000)
    kept = view(array)
    del array
    assert pool.idle_bytes == 0
    assert address(pool.lease(1000)) != np.asarray(kept).__array_interface__["data"][0] // 64 * 64
    pool.release()
    del kept
    assert pool.idle_bytes == 1000


def test_pool_keeps_no_more_than_it_may():
    pool = ArenaPool(keep_bytes=2500)
    lent = [pool.lease(1000) for _ in range(5)]
    lent.clear()
    assert pool.idle_bytes == 2000
    assert sum(map(len, pool._idle.values())) == 2


def test_pool_keeps_nothing_where_it_may_not():
    pool = ArenaPool(keep_bytes=0)
    pool.lease(1000)
    assert pool.idle_bytes == 0 and not any(pool._idle.values())


def test_pool_takes_back_what_was_lent_before_a_release():
    pool = ArenaPool()
    array, idle = pool.lease(1000), pool.lease(500)
    del idle
    pool.release()
    assert pool.idle_bytes == 0
    array[:] = 1
    del array
    assert pool.idle_bytes == 1000


def test_pool_takes_back_by_the_collector():
    """In whatever thread and at whatever moment that runs."""
    pool = ArenaPool()

    class Cycle:
        pass

    for _ in range(3):
        holder = Cycle()
        holder.itself, holder.array = holder, pool.lease(1000)
        del holder
        gc.collect()
        assert pool.idle_bytes == 1000


def test_pool_outlives_its_name():
    array = ArenaPool().lease(100)
    gc.collect()
    array[:] = 1
    assert array.sum() == 100


def test_pool_in_many_threads():
    pool, failures, barrier = ArenaPool(keep_bytes=20_000), [], threading.Barrier(6)

    def work(mark):
        rng = np.random.default_rng(mark)
        held = []
        barrier.wait(120)
        for _ in range(600):
            array = pool.lease(int(rng.choice([64, 512, 1000])))
            array[:] = mark
            held.append(array[: rng.integers(1, 64)] if rng.random() < 0.3 else array)
            if len(held) > 4:
                held.pop(rng.integers(5))
            if not all((array == mark).all() for array in held):
                failures.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
    assert pool.idle_bytes == sum(nbytes * len(blocks) for nbytes, blocks in pool._idle.items()) <= 20_000


class PoolMachine(RuleBasedStateMachine):
    """Leases, views and returns in any order; every byte has one owner."""

    def __init__(self):
        super().__init__()
        self.pool = ArenaPool(keep_bytes=3000)
        self.lent = []
        self.mark = 0

    @rule(nbytes=st.sampled_from([0, 64, 100, 1000]), part=st.booleans())
    def lease(self, nbytes, part):
        array = self.pool.lease(nbytes)
        self.mark = self.mark % 255 + 1
        array[:] = self.mark
        self.lent.append((array[nbytes // 2 :] if part else array, self.mark))

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def drop(self, data):
        self.lent.pop(data.draw(st.integers(0, len(self.lent) - 1)))

    @rule()
    def release(self):
        self.pool.release()
        assert self.pool.idle_bytes == 0

    @invariant()
    def each_byte_has_one_owner(self):
        assert all((array == mark).all() for array, mark in self.lent)

    @invariant()
    def the_count_is_right(self):
        idle = sum(nbytes * len(blocks) for nbytes, blocks in self.pool._idle.items())
        assert self.pool.idle_bytes == idle <= self.pool.keep_bytes


PoolMachine.TestCase.settings = cases(30, stateful_step_count=25)
TestPool = PoolMachine.TestCase
