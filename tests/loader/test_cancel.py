"""Loads in the background that are cancelled."""

import gc
import os

import pytest

import fastassign as fa
from fastassign.assigning.open_batch import OpenBatch
from support import differential as d
from support.loading import KEPT, LONG, Lock, together, values, wide


class TestCancel:
    def assert_cancelled(self, future, model, old):
        with pytest.raises(fa.Cancelled, match="no variable was changed"):
            future.result(LONG)
        assert future.cancelled()
        assert future.done()
        assert values(model) == old

    def test_before_it_starts(self, files, contents, model, brake):
        with fa.Loader(model) as loader:
            first = loader.load_async(files[1])
            assert brake.reached.wait(LONG)
            second = loader.load_async(files[2])
            assert second.cancel()
            assert second.cancel()
            assert not second.done()
            brake.may_go.set()
            first.result(LONG)
            self.assert_cancelled(second, model, contents[1])
            assert not second.cancel()

    @pytest.mark.parametrize("first", [0, 1, 2, 5])
    def test_while_it_reads(self, first, tmp_path, brake):
        model = d.perturb(wide(), 0.5)
        path, old = d.save(d.fill(wide(), 1), tmp_path / "wide.weights.h5"), values(model)
        brake.first = first
        options = fa.LoadOptions(read_bytes=4096, gap_bytes=0, threads=1, arena_bytes=0)
        with fa.Loader(model, options=options) as loader:
            future = loader.load_async(path)
            assert brake.reached.wait(LONG)
            assert future.cancel()
            assert not future.done()
            brake.may_go.set()
            self.assert_cancelled(future, model, old)
            assert brake.reads == first + 1
            report = loader.load_async(path).result(LONG)
        assert (report.plan, report.assigned) == (KEPT, 6)

    def test_while_it_waits_for_the_lock(self, files, contents, model):
        lock, old = Lock(), values(model)
        with together(model, lock) as loader:
            with lock.inner:
                future = loader.load_async(files[1])
                assert lock.asked.wait(LONG)
                assert future.cancel()
            self.assert_cancelled(future, model, old)
            assert not lock.inner.locked()
            loader.load(files[2])
        assert values(model) == contents[2]

    def test_too_late(self, files, contents, model):
        """Variables have begun to change."""
        lock = Lock()
        lock.may_leave.clear()
        with together(model, lock) as loader:
            future = loader.load_async(files[1])
            assert lock.leaving.wait(LONG)
            assert not future.done()
            assert not future.cancel()
            lock.may_leave.set()
            assert future.result(LONG).assigned == 6
            assert not future.cancelled()
        assert values(model) == contents[1]

    def test_after_an_error(self, files, model):
        with fa.Loader(model) as loader:
            future = loader.load_async(files["bad"])
            assert isinstance(future.exception(LONG), fa.Mismatch)
            assert not future.cancel()
            assert not future.cancelled()

    def test_a_load_that_would_have_failed(self, files, model, brake, copy):
        """What was cancelled is cancelled, whatever else happened to it."""
        with fa.Loader(model) as loader:
            future = loader.load_async(copy)
            assert brake.reached.wait(LONG)
            assert future.cancel()
            os.truncate(copy, 5000)
            brake.may_go.set()
            error = future.exception(LONG)
        assert isinstance(error, fa.Cancelled)
        assert future.cancelled()

    def test_what_was_read_goes(self, files, model, brake):
        """Though somebody keeps the future."""

        def batches():
            gc.collect()
            # Not isinstance, which asks a proxy whose object is gone.
            return sum(issubclass(type(each), OpenBatch) for each in gc.get_objects())

        before = batches()
        with fa.Loader(model) as loader:
            future = loader.load_async(files[1])
            assert brake.reached.wait(LONG)
            assert batches() > before
            future.cancel()
            brake.may_go.set()
            assert future.exception(LONG)
            assert batches() == before
