"""Arguments and options of a loader."""

import os
import sys
import threading
import warnings

import keras
import numpy as np
import pytest

import fastassign as fa
from fastassign.loader.loader import LoadFuture
from fastassign.planning import batches
from support import differential as d
from support import models
from support.loading import (
    BOTH,
    KEPT,
    LONG,
    MADE,
    TOGETHER,
    Lock,
    compare,
    dense,
    in_background,
    together,
    values,
    wide,
)


class TestArguments:
    def test_a_budget_that_only_streaming_keeps(self, files, tmp_path):
        model, source = d.twins(wide)
        path = d.save(d.fill(source, 1), tmp_path / "wide.weights.h5")
        old, new = values(model), values(source)
        with fa.Loader(model, options=fa.LoadOptions(max_staging_bytes=8192)) as loader:
            for _ in range(2):
                with pytest.raises(fa.Budget) as caught:
                    loader.load_async(path).result(LONG)
                assert caught.value.file == str(path)
                assert values(model) == old
                assert loader.load(path).assigned == 6
                assert values(model) == new
                d.perturb(model, 0.5)
                old = values(model)
        together = fa.LoadOptions(max_staging_bytes=8192, swap="together")
        with fa.Loader(model, options=together) as loader, pytest.raises(fa.Budget):
            loader.load(path)
        assert values(model) == old

    @BOTH
    def test_by_name(self, k, tmp_path):
        source = models.chain(k, 5, 4, names=["a", "z"])
        paths = [d.save(d.fill(source, seed), tmp_path / f"{seed}.h5") for seed in (1, 2)]
        model, stock = d.twins(lambda: models.chain(k, 5, 4, names=["a", "b"]))
        with fa.Loader(model, by_name=True) as loader:
            reports = [compare(loader, model, stock, paths[i], by_name=True) for i in (0, 1, 0)]
        assert [(report.assigned, report.plan) for report in reports] == [(2, MADE), (2, KEPT), (2, KEPT)]

    def test_objects_to_skip(self, files, model):
        stock = d.fresh(dense)
        with fa.Loader(model, objects_to_skip=iter([model.layers[1]])) as loader:
            for seed in (1, 2, 1):
                compare(loader, model, stock, files[seed], objects_to_skip=[stock.layers[1]])
                assert (np.asarray(model.layers[1].kernel) == 0.25).all()

    def test_skip_mismatch(self, files, model):
        """What does not fit is left alone, with stock's warnings, at every load."""
        stock, before = d.fresh(dense), None
        with fa.Loader(model, skip_mismatch=True) as loader:
            for load in (loader.load, loader.load, in_background(loader)):
                d.perturb(model, 0.25)
                d.perturb(stock, 0.25)
                theirs = d.stock_load(stock, files["bad"], skip_mismatch=True)
                ours = d.observe(lambda load=load: load(files["bad"]))
                assert ours.error is None
                d.same_warnings(theirs, ours)
                assert theirs.warned
                assert values(model) == values(stock)
                assert before in (None, ours.result.skipped)
                before = ours.result.skipped
            assert ours.result.plan == KEPT

    def test_warnings_point_at_the_caller(self, files, model):
        with fa.Loader(model, skip_mismatch=True) as loader:
            for _ in range(2):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    line = sys._getframe().f_lineno + 1
                    loader.load(files["bad"])
                ours = [warning for warning in caught if "could not be loaded" in str(warning.message)]
                assert [(warning.filename, warning.lineno) for warning in ours] == [(__file__, line)]

    @pytest.mark.parametrize("background", [False, True], ids=["load", "load_async"])
    def test_a_file_that_changes_when_all_was_read(self, background, files, contents, model, copy):
        """The values are those that were there: a publisher may write the next ones."""
        lock = Lock()
        lock.may_leave.clear()
        with together(model, lock) as loader:
            future = loader.load_async(copy)
            assert lock.leaving.wait(LONG)
            os.utime(copy, ns=(1, 1))
            lock.may_leave.set()
            assert future.result(LONG).assigned == 6
        assert values(model) == contents[1]

    @pytest.mark.parametrize("method", ["load", "close"])
    @pytest.mark.parametrize("background", [False, True], ids=["load", "load_async"])
    def test_a_callback_that_comes_back(self, method, background, files, contents, model):
        """It would wait for itself."""
        calls = []

        def again(*_):
            with pytest.raises(RuntimeError, match="from a callback of its own load"):
                loader.load(files[2]) if method == "load" else loader.close()
            calls.append(threading.current_thread())

        with fa.Loader(model) as loader:
            if background:
                future = loader.load_async(files[1])
                future.__class__ = type("Telling", (LoadFuture,), {"progress": property(lambda _: None, again)})
                future.result(LONG)
            else:
                loader.load(files[1], progress=again)
            assert calls
            assert values(model) == contents[1]
            loader.load(files[2])
        assert values(model) == contents[2]

    def test_its_own_lock_may_be_held_around_a_load(self, files, contents, model):
        with fa.Loader(model, options=TOGETHER) as loader, loader.lock:
            loader.load(files[1])
        assert values(model) == contents[1]

    def test_progress(self, files, model):
        events = []
        with fa.Loader(model) as loader:
            for _ in range(2):
                loader.load(files[1], progress=events.append)
                found, events = events, []
                # All are assigned by one call.
                assert [event.variable for event in found] == [model.variables[-1].path]
                assert (found[-1].done_bytes, found[-1].done_variables) == (found[-1].total_bytes, 6)
            loader.load(files[1])
            loader.load(files[1], progress=True)
            assert events == []

    def test_progress_of_several_batches(self, tmp_path, monkeypatch):
        monkeypatch.setattr(batches, "BATCH_BYTES", 10_000)
        model, path = d.fresh(wide), tmp_path / "w.weights.h5"
        model.save_weights(path)
        events = []
        with fa.Loader(model) as loader:
            loader.load(path, progress=events.append)
        assert [event.done_variables for event in events] == [1, 2, 3, 4, 5, 6]
        assert [event.variable for event in events] == [variable.path for variable in model.variables]

    def test_no_model(self):
        for what in (None, 3, "model", keras.losses):
            with pytest.raises(TypeError, match="must be a Keras"):
                fa.Loader(what)

    def test_an_unknown_swap(self):
        with pytest.raises(ValueError, match="swap must be"):
            fa.LoadOptions(swap="never")

    @BOTH
    def test_a_model_that_is_not_built(self, k, files, tmp_path):
        """It may be built after the loader was made."""
        model, stock = models.subclassed(k, "a", build=False), models.subclassed(k, "a")
        path = d.saved(lambda: models.subclassed(k, "a"), tmp_path / "m.weights.h5")
        with fa.Loader(model) as loader:
            with pytest.raises(ValueError, match=r"built|create"):
                loader.load(path)
            model(np.zeros((1, 4), "f4"))
            assert compare(loader, model, stock, path).plan == MADE
            assert compare(loader, model, stock, path).plan == KEPT
