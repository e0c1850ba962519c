"""Running a plan on storage that fails: right values, or an error that tells the state exactly."""

import gc
import os
import random
import signal
import threading
import time

import h5py
import keras
import numpy as np
import pytest

import fastassign as fa
from fastassign.catalog.file import WeightFile
from fastassign.errors import ReadFailed
from support import attacks, faults
from support.options import load_options
from support.profiles import seeds
from support.running import with_source

# Batches and reads of a few variables each, so that there is a before and an after.
TINY = {"read_bytes": 4096, "window_bytes": 8192, "max_staging_bytes": 20_000, "index_cache": False}


def build():
    keras.backend.clear_session(free_memory=False)
    layers = [keras.layers.Embedding(40, 16), keras.layers.Flatten()]
    for units in (32, 48, 32, 16, 7):
        layers += [keras.layers.Dense(units), keras.layers.BatchNormalization()]
    return keras.Sequential([keras.Input((5,), dtype="int32"), *layers])


def values(model):
    return {variable.path: np.array(variable.numpy()) for variable in model.variables}


def randomise(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(rng.standard_normal(variable.shape))


def same(one, other):
    return one.keys() == other.keys() and all(one[key].tobytes() == other[key].tobytes() for key in one)


def assert_state(model, named, old, new):
    """Exactly the variables that were named have new values, to the bit."""
    now = values(model)
    assert len(set(named)) == len(named)
    assert set(named) <= now.keys()
    for path, value in now.items():
        expected = new if path in named else old
        assert value.tobytes() == expected[path].tobytes(), path
        assert old[path].tobytes() != new[path].tobytes()


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastassign-reader")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file, and what is in it."""
    path = tmp_path_factory.mktemp("faults") / "model.weights.h5"
    model = build()
    randomise(model, 1)
    model.save_weights(path)
    attacks.settle(path)
    return path, values(model)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def case(saved, model, tmp_path):
    """A copy of the file, a model with other values, both kinds of values."""
    path = tmp_path / "model.weights.h5"
    path.write_bytes(saved[0].read_bytes())
    attacks.settle(path)
    randomise(model, 2)
    yield path, model, values(model), saved[1]
    assert readers() == []
    # Whatever happened, the process can load.
    path.write_bytes(saved[0].read_bytes())
    fa.load_weights(model, path)
    assert same(values(model), saved[1])


def plan_of(model, path, *, threads=2, atomic=False, **how):
    return fa.plan(model, path, atomic=atomic, options=load_options(threads=threads, **{**TINY, **how}))


def positions(path, model, count=6):
    """Bytes of the file that hold values, from the first to the last."""
    extents = sorted(
        (extent.offset, extent.nbytes)
        for record in fa.inspect(path).contents.records.values()
        for extent in record.extents
    )
    step = max(1, len(extents) // count)
    return [extents[0][0], *(offset + nbytes // 2 for offset, nbytes in extents[::step]), sum(extents[-1]) - 1]


THREADS = pytest.mark.parametrize("threads", [1, 2, 8])


class TestBadButWhole:
    @THREADS
    @pytest.mark.parametrize(
        "make",
        [
            faults.one_byte_at_a_time,
            lambda: faults.random_shares(3),
            faults.interrupted,
            faults.nasty_by_thread,
            lambda: faults.slow(0.001),
        ],
        ids=["bytes", "random", "eintr", "by-thread", "slow"],
    )
    def test_the_values_are_right(self, case, threads, make):
        path, model, _, new = case
        source = make()
        report = with_source(plan_of(model, path, threads=threads), source).execute()
        assert same(values(model), new)
        assert report.assigned == len(new)
        assert source.made.calls > 5

    @pytest.mark.parametrize("seed", seeds(12))
    def test_any_knobs(self, case, seed):
        path, model, _, new = case
        rng = random.Random(seed)
        plan = plan_of(
            model,
            path,
            threads=rng.choice([1, 2, 3, 8]),
            atomic=rng.random() < 0.3,
            read_bytes=rng.choice([4096, 5000, 1 << 20]),
            gap_bytes=rng.choice([0, 1, 4096, 1 << 16]),
            window_bytes=rng.choice([1, 5000, 1 << 20]),
            arena_bytes=rng.choice([0, 64, 2000, 1 << 20]),
            max_staging_bytes=rng.choice([1 << 17, 1 << 20]),
        )
        with_source(plan, faults.random_shares(seed)).execute()
        assert same(values(model), new)

    def test_several_threads_read(self, case):
        path, model, _, _ = case
        source = faults.slow(0.005)
        with_source(plan_of(model, path, threads=4, window_bytes=1 << 20, max_staging_bytes=1 << 20), source).execute()
        assert len(source.made.threads) > 1


class TestDisk:
    @THREADS
    def test_an_error_names_what_was_assigned(self, case, threads):
        path, model, _, new = case
        counts = []
        for position in positions(path, model):
            randomise(model, 2)
            old = values(model)
            with pytest.raises(ReadFailed, match="Input/output error") as caught:
                with_source(plan_of(model, path, threads=threads), faults.fails_at(position)).execute()
            error = caught.value
            assert error.file == str(path)
            assert error.errno == 5
            assert_state(model, error.assigned, old, new)
            counts.append(len(error.assigned))
            note = error.__notes__[-1]
            assert ("no variable was changed" in note) == (not error.assigned)
            if error.assigned:
                assert f"{len(error.assigned)} of {len(new)} variables have their new values already" in note
                assert error.assigned[0] in note
            assert readers() == []
        assert min(counts) == 0
        assert max(counts) > 0

    @THREADS
    def test_an_early_end(self, case, threads):
        path, model, _, new = case
        for position in positions(path, model):
            randomise(model, 2)
            old = values(model)
            with pytest.raises(fa.Truncated, match="bytes short") as caught:
                with_source(plan_of(model, path, threads=threads), faults.ends_at(position)).execute()
            assert caught.value.file == str(path)
            assert_state(model, caught.value.assigned, old, new)

    @THREADS
    def test_atomic_leaves_everything_as_it_was(self, case, threads):
        path, model, old, _ = case
        how = {"threads": threads, "atomic": True, "max_staging_bytes": 1 << 20}
        for position in positions(path, model):
            for make, kind in ((faults.fails_at, ReadFailed), (faults.ends_at, fa.Truncated)):
                with pytest.raises(kind) as caught:
                    with_source(plan_of(model, path, **how), make(position)).execute()
                assert caught.value.assigned == ()
                assert caught.value.file == str(path)
                assert "no variable was changed" in caught.value.__notes__
        assert same(values(model), old)

    def test_an_error_that_is_not_of_the_disk(self, case):
        path, model, old, new = case

        def before(number, *_):
            if number == 3:
                raise ZeroDivisionError("a bug")

        with pytest.raises(ZeroDivisionError) as caught:
            with_source(plan_of(model, path, threads=1), faults.faulty(before=before)).execute()
        assert_state(model, caught.value.assigned, old, new)

    def test_a_dataset_that_can_not_be_decoded(self, saved, model, tmp_path):
        path = tmp_path / "model.weights.h5"
        path.write_bytes(saved[0].read_bytes())
        with h5py.File(path, "r+") as file:
            group = file["layers/dense_1/vars"]
            array = np.full((32, 48), 7, "f4")
            del group["0"]
            group.create_dataset("0", data=array, chunks=(32, 48), fletcher32=True)
        attacks.patch(path, array.tobytes(), array.tobytes()[:-4] + b"abcd")
        attacks.settle(path)
        randomise(model, 2)
        old = values(model)
        new = {**saved[1], "sequential/dense_1/kernel": array}
        for atomic in (False, True):
            randomise(model, 2)
            with pytest.raises(fa.Malformed) as caught:
                plan_of(model, path, atomic=atomic, max_staging_bytes=1 << 20).execute()
            assert caught.value.tensor == "layers/dense_1/vars/0"
            assert caught.value.file == str(path)
            assert_state(model, caught.value.assigned, old, new)
            assert not (atomic and caught.value.assigned)


class TestChanges:
    """The file is written to: between plan and execution, and in the middle."""

    def test_before_it_is_executed(self, case, tmp_path):
        path, model, old, _ = case
        content = path.read_bytes()

        def touch():
            os.utime(path)

        def write():
            with path.open("r+b") as file:
                file.seek(len(content) // 2)
                file.write(b"other")

        def replace():
            (tmp_path / "new").write_bytes(content)
            (tmp_path / "new").replace(path)

        def cut():
            os.truncate(path, len(content) // 2)

        for change in (touch, write, replace, cut):
            path.write_bytes(content)
            attacks.settle(path)
            plan = plan_of(model, path)
            change()
            with pytest.raises((fa.Changed, fa.Truncated)) as caught:
                plan.execute()
            assert caught.value.file == str(path)
            assert "plan again" in caught.value.hint
        path.unlink()
        with pytest.raises(FileNotFoundError):
            plan.execute()
        assert same(values(model), old)

    @THREADS
    @pytest.mark.parametrize("how", ["touched", "written", "cut", "grown"])
    def test_while_it_is_executed(self, case, threads, how):
        path, model, _, new = case
        content = path.read_bytes()
        seen = set()
        for moment in (1, 2, 4, 8):
            path.write_bytes(content)
            attacks.settle(path)
            randomise(model, 2)
            old = values(model)

            def before(number, *_, moment=moment):
                if number != moment:
                    return
                if how == "cut":
                    os.truncate(path, 5000)
                elif how == "written":
                    with path.open("r+b") as file:
                        file.write(content)
                elif how == "grown":
                    with path.open("ab") as file:
                        file.write(b"x")
                else:
                    os.utime(path)

            with pytest.raises((fa.Changed, fa.Truncated)) as caught:
                with_source(plan_of(model, path, threads=threads), faults.faulty(before=before)).execute()
            assert caught.value.file == str(path)
            seen.add(type(caught.value))
            assert_state(model, caught.value.assigned, old, new)
        assert (fa.Truncated in seen) == (how == "cut")

    def test_replaced_while_it_is_executed_gives_the_old_file(self, case, tmp_path):
        path, model, _, new = case

        def before(number, *_):
            if number == 2:
                (tmp_path / "new").write_bytes(b"something else")
                (tmp_path / "new").replace(path)

        with_source(plan_of(model, path), faults.faulty(before=before)).execute()
        assert same(values(model), new)


class TestInterrupts:
    @THREADS
    def test_from_a_callback(self, case, threads):
        path, model, _, new = case
        for stop in (1, 7, len(new)):
            randomise(model, 2)
            old = values(model)
            seen = []

            def progress(event, stop=stop, seen=seen):
                seen.append(event.variable)
                if len(seen) == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt) as caught:
                plan_of(model, path, threads=threads).execute(progress)
            assert caught.value.assigned == tuple(seen)
            assert f"{stop} of {len(new)} variables have their new values already" in caught.value.__notes__[-1]
            assert_state(model, seen, old, new)
            assert readers() == []

    def test_from_a_callback_of_an_atomic_load(self, case):
        path, model, old, new = case
        seen = []

        def progress(event):
            seen.append(event.variable)
            if len(seen) == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught:
            plan_of(model, path, atomic=True, max_staging_bytes=1 << 20).execute(progress)
        assert_state(model, caught.value.assigned, old, new)

    @THREADS
    def test_by_a_signal(self, case, threads):
        """At the first read, and at a later one: the rest is not read any more."""
        path, model, _, new = case
        for first in (1, 5):
            randomise(model, 2)
            old = values(model)
            plan = plan_of(model, path, threads=threads)

            def interrupt(number, offset, wanted, first=first):
                if number == first:
                    os.kill(os.getpid(), signal.SIGINT)
                elif number > first:
                    time.sleep(0.03)  # the thread that is interrupted gets its turn

            with pytest.raises(KeyboardInterrupt) as caught:
                with_source(plan, faults.faulty(before=interrupt)).execute()
                threading.Event().wait(60)
            assert readers() == []
            assert len(caught.value.assigned) < len(new)
            assert_state(model, caught.value.assigned, old, new)
            assert any("variable" in note for note in caught.value.__notes__)


def test_nothing_stays_open(case):
    path, model, _, _ = case
    plan = plan_of(model, path)
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    for position in positions(path, model):
        with pytest.raises(ReadFailed):
            with_source(plan, faults.fails_at(position)).execute()
    plan.execute()
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_source_may_be_anything(case):
    path, model, _, new = case

    class InMemory:
        def __init__(self, source):
            self.content = WeightFile(path).read(0, WeightFile(path).size)

        def preadv(self, buffers, offset):
            done = 0
            for buffer in buffers:
                piece = self.content[offset + done : offset + done + len(buffer)]
                buffer[: len(piece)] = piece
                done += len(piece)
            return done

    with_source(plan_of(model, path), InMemory).execute()
    assert same(values(model), new)
