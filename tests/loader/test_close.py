"""The end of a loader: closed, left by an error, or dropped; nothing stays."""

import gc
import os
import threading
import weakref

import keras
import pytest
import tf_keras

import fastassign as fa
from fastassign.loader.loader import LoadFuture
from fastassign.plan import Plan
from support import differential as d
from support.loading import LONG, Lock, compress, dense, functions, running, together, values


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastassign")]


class TestClose:
    def test_it_may_be_closed_twice_and_unused(self, files, model):
        fa.Loader(model).close()
        loader = fa.Loader(model)
        loader.load(files[1])
        loader.load_async(files[1]).result(LONG)
        loader.close()
        loader.close()

    def test_afterwards_nothing_can_be_loaded(self, files, model):
        for is_used in (False, True):
            with fa.Loader(model) as loader:
                if is_used:
                    loader.load(files[1])
            before = d.snapshot(model)
            for load in (loader.load, loader.load_async):
                with pytest.raises(RuntimeError, match="this loader is closed"):
                    load(files[2])
            d.assert_untouched(model, before)

    def test_with_closes_after_an_error(self, files, model):
        loader = fa.Loader(model)
        with pytest.raises(fa.Mismatch), loader:
            loader.load(files["bad"])
        with pytest.raises(RuntimeError, match="closed"):
            loader.load(files[1])

    def closing(self, loader, monkeypatch):
        """Close in a thread; return what tells that it has begun to cancel, and the thread."""
        begun, cancel = threading.Event(), LoadFuture.cancel

        def noted(future):
            found = cancel(future)
            begun.set()
            return found

        monkeypatch.setattr(LoadFuture, "cancel", noted)
        return begun, running(loader.close)

    def test_while_it_reads(self, files, model, brake, monkeypatch):
        """What is under way and what is queued is cancelled, and over when `close` returns."""
        loader, old = fa.Loader(model), values(model)
        futures = [loader.load_async(files[seed]) for seed in (1, 2, 1)]
        assert brake.reached.wait(LONG)
        begun, closing = self.closing(loader, monkeypatch)
        with closing:
            assert begun.wait(LONG)
            with pytest.raises(RuntimeError, match="closed"):
                loader.load_async(files[1])
            brake.may_go.set()
        assert [future.done() for future in futures] == [True] * 3
        assert [future.cancelled() for future in futures] == [True] * 3
        assert values(model) == old
        assert background_threads() == []

    def test_while_variables_change(self, files, contents, model, monkeypatch):
        """That is waited for."""
        lock = Lock()
        lock.may_leave.clear()
        loader = together(model, lock)
        future = loader.load_async(files[1])
        assert lock.leaving.wait(LONG)
        begun, closing = self.closing(loader, monkeypatch)
        with closing as thread:
            assert begun.wait(LONG)
            assert thread.is_alive()
            lock.may_leave.set()
        assert future.result(0).assigned == 6
        assert values(model) == contents[1]

    def test_while_another_thread_loads(self, files, contents, model, brake):
        loader = fa.Loader(model)
        with running(lambda: loader.load(files[1])):
            assert brake.reached.wait(LONG)
            with running(loader.close):
                brake.may_go.set()
        assert values(model) == contents[1]
        with pytest.raises(RuntimeError, match="closed"):
            loader.load(files[1])

    def test_by_several_at_once(self, files, model, brake):
        loader = fa.Loader(model)
        future = loader.load_async(files[1])
        assert brake.reached.wait(LONG)
        with running(loader.close), running(loader.close), running(loader.close):
            brake.may_go.set()
        assert future.done()
        assert background_threads() == []

    def test_in_a_callback(self, files, model):
        loader, errors, over = fa.Loader(model), [], threading.Event()

        def close(_):
            try:
                loader.close()
            except RuntimeError as error:
                errors.append(error)
            over.set()

        future = loader.load_async(files[1])
        future.add_done_callback(close)
        assert over.wait(LONG)
        assert errors == []
        for thread in background_threads():
            thread.join(LONG)
        assert background_threads() == []
        gc.collect()
        assert plans_of(files[1]) == []

    @pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
    def test_nothing_stays(self, suffix, model, tmp_path):
        """No thread, no open file (a compressed archive is unpacked into one), no plan."""
        path = tmp_path / f"m.{suffix}"
        d.save(d.fresh(dense), path)
        if suffix == "keras":
            compress(path)

        def use():
            with fa.Loader(model) as loader:
                loader.load(path)
                loader.load(path)
                loader.load_async(path).result(LONG)
                assert plans_of(path)

        use()
        gc.collect()
        before, names = sorted(os.listdir("/proc/self/fd")), functions()
        use()
        assert background_threads() == []
        gc.collect()
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert plans_of(path) == []
        assert functions() == names

    def test_files_are_not_held_open_between_loads(self, files, model):
        with fa.Loader(model) as loader:
            for seed in (1, 2, 1):
                loader.load(files[seed])
                loader.load_async(files[seed]).result(LONG)
                gc.collect()
                opened = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if exists(n)]
                assert not [path for path in opened if path.endswith(".weights.h5")]

    @pytest.mark.parametrize(
        "k",
        [
            keras,
            tf_keras,
        ],
        ids=["keras", "tf_keras"],
    )
    def test_a_model_and_its_loader_that_are_dropped(self, k, tmp_path):
        paths = [d.saved(lambda: dense(k), tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        model = d.fresh(lambda: dense(k))
        loader = fa.Loader(model)
        loader.load(paths[0])
        loader.load_async(paths[1]).result(LONG)
        dead, threads = weakref.ref(model), background_threads()
        del loader, model
        gc.collect()
        for thread in threads:
            thread.join(LONG)
        gc.collect()
        assert dead() is None

    def test_a_loader_that_is_dropped(self, files, model):
        """Though nobody closed it."""
        loader = fa.Loader(model)
        loader.load(files[1])
        loader.load_async(files[2]).result(LONG)
        dead, threads = weakref.ref(loader), background_threads()
        del loader
        gc.collect()
        for thread in threads:
            thread.join(LONG)
        gc.collect()
        assert dead() is None
        assert background_threads() == []
        assert plans_of(files[1]) == []

    def test_a_loader_that_is_dropped_with_loads_to_do(self, files, contents, model, brake):
        """They are done all the same."""
        loader = fa.Loader(model)
        futures = [loader.load_async(files[seed]) for seed in (1, 2)]
        dead, threads = weakref.ref(loader), background_threads()
        del loader
        brake.may_go.set()
        assert [future.result(LONG).assigned for future in futures] == [6, 6]
        assert values(model) == contents[2]
        gc.collect()
        for thread in threads:
            thread.join(LONG)
        assert dead() is None


def exists(number):
    return os.path.lexists(f"/proc/self/fd/{number}")


def plans_of(path):
    """Return the plans for a file, or one beside it, that are still in memory."""
    plans = [each for each in gc.get_objects() if type(each) is Plan]
    return [plan for plan in plans if os.path.dirname(plan.origin.path) == os.path.dirname(path)]
