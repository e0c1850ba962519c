"""Several loads at once, and the garbage collector that they hold back together."""

import gc
import threading

import h5py
import keras
import numpy as np
import pytest

import fastassign as fa
from fastassign.gc_pause import gc_paused

COUNT = 4


def build():
    return keras.Sequential(
        [keras.Input((6,)), *(keras.layers.Dense(n, name=f"d{i}") for i, n in enumerate((40, 30, 20, 10)))]
    )


def values(model):
    return [variable.numpy().tobytes() for variable in model.variables]


def run(work, count=COUNT):
    """Run ``work(i)`` in threads that begin together; raise what any of them raised."""
    barrier, errors = threading.Barrier(count), []

    def call(i):
        try:
            barrier.wait(120)
            work(i)
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            errors.append(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of the same model: one is read in place, of the other h5py decodes a part."""
    folder = tmp_path_factory.mktemp("threads")
    found = []
    for seed in (1, 2):
        path = folder / f"{seed}.weights.h5"
        keras.backend.clear_session(free_memory=False)
        model = build()
        rng = np.random.default_rng(seed)
        for variable in model.variables:
            variable.assign(rng.standard_normal(variable.shape))
        model.save_weights(path)
        found.append((path, values(model)))
    with h5py.File(found[1][0], "r+") as file:
        for layer in list(file["layers"]):
            group = file["layers"][layer]["vars"]
            array = group["0"][()]
            del group["0"]
            group.create_dataset("0", data=array, chunks=(5, 5), compression="gzip", shuffle=True)
    return found


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("cache", [False, True])
def test_different_models_from_the_same_file(files, number, cache):
    path, expected = files[number]
    models = [build() for _ in range(COUNT)]

    def work(i):
        for _ in range(5):
            fa.load_weights(models[i], path, options=fa.LoadOptions(threads=1 + i, index_cache=cache))
            assert values(models[i]) == expected

    run(work)


@pytest.mark.parametrize("number", [0, 1])
def test_the_same_model_from_the_same_file(files, number):
    path, expected = files[number]
    model = build()
    run(lambda i: [fa.load_weights(model, path, options=fa.LoadOptions(threads=2)) for _ in range(5)])
    assert values(model) == expected


def test_different_files_into_different_models(files):
    models = [build() for _ in range(COUNT)]

    def work(i):
        for turn in range(6):
            path, expected = files[(i + turn) % 2]
            fa.load_weights(models[i], path)
            assert values(models[i]) == expected

    run(work)


def test_one_plan_executed_by_several(files):
    path, expected = files[0]
    model = build()
    plan = fa.plan(model, path)
    run(lambda i: plan.execute())
    assert values(model) == expected


def test_one_catalog_read_by_several(files):
    path, _ = files[1]
    catalog = fa.inspect(path)
    with h5py.File(path) as file:
        expected = {key: file[key][()].tobytes() for key in catalog}

    def work(i):
        for key in [*catalog][:: (1, -1)[i % 2]]:
            assert catalog[key].read().tobytes() == expected[key]

    run(work)


class TestCollector:
    @pytest.fixture(autouse=True)
    def restored(self):
        enabled = gc.isenabled()
        yield
        (gc.enable if enabled else gc.disable)()

    @pytest.mark.parametrize("enabled", [True, False])
    def test_it_is_as_before(self, enabled):
        (gc.enable if enabled else gc.disable)()
        with gc_paused():
            assert not gc.isenabled()
            with gc_paused():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(KeyboardInterrupt), gc_paused(), gc_paused():
            raise KeyboardInterrupt
        assert gc.isenabled() == enabled

    @pytest.mark.parametrize("enabled", [True, False])
    def test_the_last_to_leave_restores_it(self, enabled):
        (gc.enable if enabled else gc.disable)()
        inside, leave = threading.Event(), threading.Event()

        def other():
            with gc_paused():
                inside.set()
                leave.wait(120)

        thread = threading.Thread(target=other)
        with gc_paused():
            thread.start()
            inside.wait(120)
        assert not gc.isenabled()  # the other is still inside
        leave.set()
        thread.join()
        assert gc.isenabled() == enabled

    def test_after_loads_that_succeed_and_fail(self, files, tmp_path):
        gc.enable()
        model = build()
        bad = tmp_path / "bad.weights.h5"
        bad.write_bytes(b"nothing")

        def work(i):
            for turn in range(5):
                if (i + turn) % 2:
                    fa.load_weights(model, files[0][0])
                else:
                    with pytest.raises(fa.Malformed):
                        fa.load_weights(model, bad)

        run(work)
        assert gc.isenabled()
        seen = []
        fa.load_weights(model, files[0][0], progress=lambda event: seen.append(gc.isenabled()))
        assert set(seen) == {False}
        assert gc.isenabled()
