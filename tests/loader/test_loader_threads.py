"""Several threads: loads beside loads and beside reads, and the lock around them."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastassign as fa
from support import differential as d
from support.loading import KEPT, LONG, MADE, TOGETHER, Lock, in_background, running, together, values


def constant(path, model, value):
    """Write a file in which every value is the same; the model keeps its own."""
    twin = keras.models.clone_model(model)
    d.perturb(twin, value)
    twin.save_weights(path)
    return path


class TestThreads:
    @pytest.mark.parametrize("swap", ["each", "together"])
    def test_several_load(self, swap, files, contents, model):
        reports, barrier = [], threading.Barrier(4)

        def work(number):
            barrier.wait(LONG)
            for turn in range(5):
                path = files[1 + (number + turn) % 2]
                reports.append(loader.load(path) if number % 2 else loader.load_async(path).result(LONG))

        with fa.Loader(model, options=fa.LoadOptions(swap=swap)) as loader:
            with running(lambda: work(0)), running(lambda: work(1)), running(lambda: work(2)), running(lambda: work(3)):
                pass
            assert values(model) in contents.values()
        assert sorted(report.plan for report in reports) == [KEPT] * 19 + [MADE]
        assert {report.assigned for report in reports} == {6}

    @pytest.mark.parametrize("swap", ["each", "together"])
    def test_no_variable_is_ever_torn(self, swap, tmp_path):
        """Small ones, which share memory, large ones, and one that is looked up in."""
        model = keras.Sequential(
            [
                keras.Input((1,), dtype="int32"),
                keras.layers.Embedding(3000, 100),
                keras.layers.Flatten(),
                keras.layers.Dense(600),
                keras.layers.Dense(30),
                keras.layers.Dense(3),
            ]
        )
        paths = [constant(tmp_path / f"{value}.weights.h5", model, value) for value in (1.0, 2.0)]
        weights = [variable._value for variable in model.variables]
        two = tf.function(lambda: [tf.identity(weights[1]), tf.identity(weights[3])])
        whole, rows = tf.function(model), tf.constant([5, 2999])
        outputs = []
        for path in paths:
            fa.load_weights(model, path)
            outputs.append(whole(rows[:, None]).numpy().tobytes())
        assert outputs[0] != outputs[1]
        stop, counts = threading.Event(), [0, 0, 0]

        def check(array):
            assert array.min() == array.max()
            assert array.flat[0] in (1.0, 2.0)
            return array.flat[0]

        def read():
            while not stop.is_set():
                with loader.lock:
                    found = {check(weight.numpy()) for weight in weights}
                assert swap == "each" or len(found) == 1
                counts[0] += 1

        def look_up():
            while not stop.is_set():
                check(tf.gather(weights[0], rows).numpy())
                counts[1] += 1

        def call():
            while not stop.is_set():
                with loader.lock:
                    found, output = {check(array.numpy()) for array in two()}, whole(rows[:, None]).numpy()
                assert swap == "each" or (len(found) == 1 and output.tobytes() in outputs)
                counts[2] += 1

        with fa.Loader(model, options=fa.LoadOptions(swap=swap)) as loader:
            loader.load(paths[0])
            with running(read), running(look_up), running(call):
                try:
                    for turn in range(60):
                        load = in_background(loader) if turn % 3 else loader.load
                        assert load(paths[turn % 2]).plan == KEPT
                finally:
                    stop.set()
        assert min(counts) > 0

    def test_the_lock_is_held_while_variables_change(self, files, contents, model):
        """From the first to the last, and by whoever loads."""
        held, before = [], values(model)

        def look(event):
            def take():
                held.append((event.done_variables, loader.lock.acquire(blocking=False)))
                if held[-1][1]:
                    loader.lock.release()

            with running(take):
                pass

        with fa.Loader(model, options=TOGETHER) as loader:
            loader.load(files[1], progress=look)
            assert loader.lock.acquire(blocking=False)
        assert {count for count, _ in held} >= {0, 6}
        assert [acquired for _, acquired in held] == [count == 0 for count, _ in held]
        assert before != contents[1]

    def test_the_lock_is_left_alone_otherwise(self, files, contents, model):
        with fa.Loader(model) as loader, loader.lock:
            loader.load(files[1])
            loader.load_async(files[2]).result(LONG)
        assert values(model) == contents[2]

    def test_the_lock_may_be_the_server_s(self, files, contents, model):
        lock = threading.RLock()
        with fa.Loader(model, lock=lock, options=TOGETHER) as loader:
            assert loader.lock is lock
            with lock:
                loader.load(files[1])
            loader.load_async(files[2]).result(LONG)
        assert values(model) == contents[2]

    def test_the_lock_is_free_after_an_error(self, files, model):
        """One in the middle of the assignments."""

        def stop(event):
            if event.done_variables:
                raise ZeroDivisionError

        with fa.Loader(model, options=TOGETHER) as loader:
            with pytest.raises(ZeroDivisionError) as caught:
                loader.load(files[1], progress=stop)
            assert caught.value.assigned
            assert loader.lock.acquire(blocking=False)

    def test_the_lock_is_held_while_constants_are_renewed(self, tmp_path):
        """What a layer derives from its weights belongs to them."""

        def build():
            inputs = keras.Input((3,))
            return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Normalization()(inputs)))

        model, source = d.twins(build)
        for each, factor in ((model, 1), (source, 100)):
            each.layers[1].adapt(factor * np.random.default_rng(0).random((9, 3)))
        source.save_weights(tmp_path / "m.weights.h5")
        lock, seen = Lock(), []
        lock.may_leave.clear()
        with together(model, lock) as loader:
            future = loader.load_async(tmp_path / "m.weights.h5")
            assert lock.leaving.wait(LONG)
            seen.append(np.asarray(model.layers[1].mean).tobytes())
            lock.may_leave.set()
            future.result(LONG)
        assert seen == [np.asarray(source.layers[1].mean).tobytes()]
