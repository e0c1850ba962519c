"""Memory after a load and during one: aligned, owned by one variable each, never written again, bounded."""

import gc
import itertools
import json
import os
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import fastassign as fa
from support import attacks
from support.options import load_options

# What a load may take above what the plan says: threads, index, arenas' padding, what malloc keeps.
SLACK_BYTES = 48 << 20

ROUTES = pytest.mark.parametrize("route", ["owned", "arena"])


def options(route, **how):
    return load_options(arena_bytes=0 if route == "owned" else 1 << 20, **how)


def build(optimizer=None):
    keras.backend.clear_session(free_memory=False)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            keras.layers.Embedding(9, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(7, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )
    if optimizer is not None:
        model.compile(optimizer, "mse")
        model.optimizer.build(model.trainable_variables)
    return model


def randomise(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(rng.uniform(0.1, 1.0, variable.shape).astype(variable.dtype))  # variances are positive


def values(model):
    return [np.array(variable.numpy()) for variable in model.variables]


def same(one, other):
    return [value.tobytes() for value in one] == [value.tobytes() for value in other]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    found = []
    for seed in (1, 2):
        path = tmp_path_factory.mktemp("memory") / f"{seed}.weights.h5"
        model = build()
        randomise(model, seed)
        model.save_weights(path)
        found.append((path, values(model)))
    return found


@pytest.fixture
def model(saved):
    model = build()
    model(np.zeros((1, 3), "int32"))
    return model


def load(model, path, route):
    report = fa.load_weights(model, path, options=options(route))
    assert report.routes == {route: len(model.variables)}
    return report


class TestAliases:
    @ROUTES
    def test_every_buffer_is_aligned(self, saved, model, route):
        for path, expected in saved:
            load(model, path, route)
            for variable in model.variables:
                assert variable._value.read_value().__array__().ctypes.data % 64 == 0
            assert same(values(model), expected)

    @ROUTES
    def test_updating_one_variable_changes_no_other(self, saved, model, route):
        path, expected = saved[0]
        load(model, path, route)
        current = [value.copy() for value in expected]
        for i, variable in enumerate(model.variables):
            for _ in range(2):  # the first update copies what TensorFlow does not own
                one = np.ones(variable.shape, variable.dtype)
                variable._value.assign_add(one)
                current[i] = current[i] + one
                assert same(values(model), current)

    @ROUTES
    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_a_training_step_is_stock_s(self, saved, route, optimizer):
        path, _ = saved[0]
        x, y = np.array([[1, 2, 3], [4, 5, 6]]), np.ones((2, 2), "f4")
        ours, stock = build(optimizer), build(optimizer)
        fa.load_weights(ours, path, options=options(route))
        stock.load_weights(path)
        for model in (ours, stock):
            for _ in range(2):
                model.train_on_batch(x, y)
        assert same(values(ours), values(stock))
        assert not same(values(ours), saved[0][1])
        predicted = ours.predict_on_batch(x)
        assert np.isfinite(predicted).all()
        assert np.array_equal(predicted, stock.predict_on_batch(x))

    @ROUTES
    def test_loading_again_leaves_what_was_read_before(self, saved, model, route):
        (first, old), (second, new) = saved
        load(model, first, route)
        tensors = [variable._value.read_value() for variable in model.variables]
        for path, expected in ((second, new), (first, old), (second, new)):
            load(model, path, route)
            assert same(values(model), expected)
            assert same([tensor.numpy() for tensor in tensors], old)

    @ROUTES
    def test_values_outlive_everything_else(self, saved, model, route):
        path, expected = saved[0]
        plan = fa.plan(model, path, options=options(route))
        report = plan.execute()
        kept = [variable._value for variable in model.variables]
        del plan, report, model
        gc.collect()
        junk = [tf.fill((size,), 9.0) for size in (7, 28, 84, 2, 14, 1 << 16) for _ in range(20)]
        junk += [np.full(4096, 255, "u1") for _ in range(200)]
        assert same([variable.numpy() for variable in kept], expected)
        assert junk

    @ROUTES
    def test_one_plan_executed_twice(self, saved, model, route):
        path, expected = saved[0]
        plan = fa.plan(model, path, options=options(route))
        for _ in range(2):
            randomise(model, 5)
            plan.execute()
            assert same(values(model), expected)

    @ROUTES
    def test_an_embedding_that_was_looked_up(self, saved, model, route):
        """A gather marks its variable: reads and assignments copy from then on."""
        (first, old), (second, new) = saved
        rows = np.array([0, 8, 3])
        for path, expected in ((first, old), (second, new), (first, old)):
            load(model, path, route)
            table = model.variables[0]._value
            assert tf.gather(table, rows).numpy().tobytes() == expected[0][rows].tobytes()
            table.scatter_nd_add([[1]], np.ones((1, 4), "f4"))
            changed = expected[0].copy()
            changed[1] += 1
            assert same(values(model), [changed, *expected[1:]])

    def test_a_large_variable_that_was_looked_up(self, tmp_path):
        """Above a megabyte the mark is cleared first."""
        path = tmp_path / "model.weights.h5"
        table = np.random.default_rng(0).standard_normal((3000, 100)).astype("f4")
        with h5py.File(path, "w") as file:
            file.create_group("vars")
            file["layers/embedding/vars/0"] = table
        model = keras.Sequential([keras.Input((2,), dtype="int32"), keras.layers.Embedding(3000, 100)])
        ids = np.array([[5, 2999]])
        model(ids)
        fa.load_weights(model, path)
        assert np.asarray(model(ids)).tobytes() == table[ids].tobytes()
        variable = model.variables[0]._value
        held = variable.read_value()
        variable.scatter_nd_sub([[5]], np.ones((1, 100), "f4"))
        assert held.numpy().tobytes() == table.tobytes()
        expected = table.copy()
        expected[5] -= 1
        assert variable.numpy().tobytes() == expected.tobytes()

    @ROUTES
    def test_a_compiled_function_sees_the_new_values(self, saved, model, route):
        x = np.array([[1, 2, 3]])
        call = tf.function(model)
        for path, _ in saved:
            load(model, path, route)
            stock = build()
            stock.load_weights(path)
            np.testing.assert_allclose(call(x).numpy(), stock(x).numpy(), rtol=1e-6)


PEAK = """
import gc, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
import fastassign as fa

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))

shapes = json.loads(sys.argv[2])
layers = [keras.layers.Dense(n, use_bias=False, kernel_initializer="zeros") for _, n in shapes]
model = keras.Sequential([keras.Input((shapes[0][0],)), *layers])
figures = []
for _ in range(2):
    plan = fa.plan(model, sys.argv[1], options=fa.LoadOptions(index_cache=False))
    gc.collect()
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark begins anew
    plan.execute()
    figures.append({"before": before, "peak": status("VmHWM"), "after": status("VmRSS"),
                    "staging": plan.staging_bytes, "bytes": plan.nbytes})
sums = [float(np.asarray(v.numpy(), "f8").sum()) for v in model.variables]
print(json.dumps({"figures": figures, "sums": sums}))
"""


@pytest.mark.slow
def test_a_load_takes_no_more_than_its_plan_says(tmp_path):
    """300 MB in layers of 16 and 32 MiB, in a process of its own."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not reset the high-water mark of memory")
    path = tmp_path / "model.weights.h5"
    sizes = [2048, 2048, 4096, 2048, 4096, 2048, 4096, 2048, 4096, 2048, 2048]
    shapes = list(itertools.pairwise(sizes))
    with h5py.File(path, "w") as file:
        file.create_group("vars")
        for i, shape in enumerate(shapes):
            file[f"layers/dense{f'_{i}' if i else ''}/vars/0"] = np.full(shape, i + 1, "f4")
    attacks.settle(path)
    try:
        command = [sys.executable, "-c", PEAK, str(path), json.dumps(shapes)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    finally:
        path.unlink()
    assert child.returncode == 0, child.stderr[-3000:]
    result = json.loads(child.stdout.splitlines()[-1])
    assert result["sums"] == [(i + 1.0) * rows * columns for i, (rows, columns) in enumerate(shapes)]
    for figures in result["figures"]:
        assert figures["bytes"] > 280 << 20
        assert figures["staging"] <= 64 << 20
        steady = max(figures["before"], figures["after"])
        assert figures["peak"] - figures["before"] <= figures["staging"] + SLACK_BYTES, figures
        assert figures["peak"] - steady <= figures["staging"] + SLACK_BYTES, figures
