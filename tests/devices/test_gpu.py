"""Loads to a card, compared with stock bit for bit: always on the simulated card, and on a real one where there is one.

    CUDA_VISIBLE_DEVICES=0 pytest -m gpu

Models are made of dense, embedding and normalisation layers, and are never called: a TensorFlow that can only allocate,
copy and compute element by element passes.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastassign
from fastassign.benchmarks.cases.compare import check_equal, perturb
from fastassign.benchmarks.device.card import why_unseen
from fastassign.benchmarks.device.models import policy
from fastassign.devices.driver import Missing
from fastassign.runtime import process_runtime
from support.options import load_options
from support.running import set_runtime
from support.simulated import DEVICES, simulated

HOW = "CUDA_VISIBLE_DEVICES=0 pytest -m gpu runs this where there is a card"

# Options, and the route that they lead to.
ROUTES = {
    "auto": ({}, "fused"),
    "direct": ({"route": "direct"}, "direct"),
    "split": ({"route": "fused", "cut": "split"}, "fused"),
    "function": ({"route": "fused", "cut": "function"}, "fused"),
    "scatter": ({"route": "fused", "cut": "scatter"}, "fused"),
}

# Bit patterns of float32 that casts easily get wrong: NaNs with payloads, denormals, halfway cases, too large numbers.
SPECIAL = [0x7F800001, 0xFF800001, 0x7FC12345, 0xFFFFFFFF, 0x7F80FFFF, 0x7FBFE000, 0x00000001, 0x80000001, 0x33000000,
           0x33000001, 0x387FE000, 0x477FEFFF, 0x477FF000, 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000,
           0x80000000]  # fmt: skip


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def card(request, monkeypatch):
    """Return TensorFlow's full name of a device that fastassign copies to by itself."""
    if request.param == "simulated":
        with simulated(monkeypatch):
            yield DEVICES[0]
        return
    seen = tf.config.list_logical_devices("GPU")
    if not seen:
        pytest.skip(f"TensorFlow sees no card: {why_unseen()}. {HOW}")
    driver = process_runtime().find_driver()
    if isinstance(driver, Missing):
        pytest.skip(f"{driver.reason} ({driver.hint})")
    with tf.device(seen[0].name):
        yield tf.identity(tf.constant(0.0)).device


def needs_kernels(card):
    missing = process_runtime().find_driver().kernels_missing()
    if missing:
        pytest.skip(f"{card}: {missing}")


def build(card):
    """Build a model of shapes that do and don't fill rows of 64 bytes, some twice, one larger than a small slot."""
    with tf.device(card):
        inputs = keras.Input((3,), dtype="int32")
        x = keras.layers.Embedding(40, 16)(inputs)
        x = keras.layers.BatchNormalization()(x)
        for units in (7, 7, 33, 64):
            x = keras.layers.Dense(units)(x)
        x = keras.layers.BatchNormalization()(x)
        return keras.Model(inputs, keras.layers.Dense(300)(x))


def save(path, seed, special=()):
    """Write a file of distinct values, special bit patterns among them."""
    rng = np.random.default_rng(seed)
    model = build(DEVICES[1])
    for weight in model.weights:
        bits = rng.integers(0x3C000000, 0x40000000, weight.shape, dtype=np.uint32)
        bits.reshape(-1)[: len(special)] = np.array(special, np.uint32)[: bits.size]
        weight.assign(bits.view(np.float32))
    model.save_weights(path)
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Return two files of the same structure."""
    folder = tmp_path_factory.mktemp("gpu")
    return [save(folder / f"{seed}.weights.h5", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def special(tmp_path_factory):
    """Return a file of values that are hard to cast."""
    return save(tmp_path_factory.mktemp("gpu") / "special.weights.h5", 3, SPECIAL)


def check(model, path, options, load=None):
    """Load with stock and with fastassign, compare, and return the report."""
    reports = []

    def ours(model, path):
        reports.append(load(path) if load else fastassign.load_weights(model, path, options=options))

    check_equal(model, path, load=ours)
    return reports[-1]


def values_of(model):
    return [weight.numpy().copy() for weight in model.weights]


def assert_on(card, model):
    assert {weight._value.handle.device for weight in model.weights} == {card}


@pytest.mark.parametrize("way", ROUTES)
def test_every_route_is_exact(card, paths, way):
    knobs, route = ROUTES[way]
    if way == "scatter":
        needs_kernels(card)
    model = build(card)
    assert_on(card, model)
    report = check(model, paths[0], load_options(**knobs))
    assert set(report.routes) == {route}
    assert not report.fallbacks


@pytest.mark.parametrize("way", ROUTES)
@pytest.mark.parametrize("threads", [1, 4])
def test_slots_that_hold_little_go_round(card, paths, way, threads):
    if way == "scatter":
        needs_kernels(card)
    knobs, route = ROUTES[way]
    options = load_options(
        slot_bytes=1 << 14, device_threads=threads, device_window_bytes=1 << 14, gap_bytes=0, **knobs
    )
    assert check(build(card), paths[0], options).routes[route]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("way", [*ROUTES, "eager"])
def test_casts_are_those_of_numpy(card, special, dtype, way):
    needs_kernels(card)
    knobs, route = ROUTES.get(way, ({"route": "eager"}, "assign"))
    with policy(dtype):
        model = build(card)
    report = check(model, special, load_options(**knobs))
    assert report.routes[route]
    assert report.cast


@pytest.mark.parametrize("how", ["eager", "not page-locked", "no driver"])
def test_loads_without_the_fast_way_are_exact_too(card, paths, how, monkeypatch):
    options = load_options(
        route="eager" if how == "eager" else "auto", page_lock=False if how == "not page-locked" else None
    )
    model = build(card)
    with monkeypatch.context() as patch:
        if how == "no driver":
            set_runtime(patch, find_driver=lambda: Missing("there is none", "get one"))
        report = check(model, paths[0], options)
    if how == "not page-locked":
        assert set(report.routes) == {"fused"}
    if how == "no driver":  # only devices with a card's name get a notice, unlike the simulated one
        assert bool(report.fallbacks) == ("GPU" in card)
    assert check(model, paths[1], fastassign.LoadOptions()).routes["fused"]


@pytest.mark.parametrize("way", ROUTES)
def test_a_loader_swaps_files(card, paths, way):
    if way == "scatter":
        needs_kernels(card)
    knobs, route = ROUTES[way]
    model = build(card)
    with fastassign.Loader(model, options=load_options(**knobs)) as loader:
        for path in (*paths, *paths):
            assert check(model, path, None, load=loader.load).routes[route]
        perturb(model, 5.0)
        loader.load_async(paths[0]).result()
        found = values_of(model)
    model.load_weights(paths[0])
    for mine, stock in zip(found, values_of(model), strict=True):
        assert mine.tobytes() == stock.tobytes()


def test_all_at_once_or_nothing(card, paths):
    model = build(card)
    check(model, paths[0], None, load=lambda path: fastassign.load_weights(model, path, atomic=True))
    with fastassign.Loader(model, options=fastassign.LoadOptions(swap="together")) as loader:
        check(model, paths[1], None, load=loader.load)


def test_two_threads_load_two_models(card, paths):
    models = [build(card) for _ in paths]
    expected = []
    for model, path in zip(models, paths, strict=True):
        model.load_weights(path)
        expected.append(values_of(model))
        perturb(model, 2.0)

    def work(number):
        for _ in range(5):
            fastassign.load_weights(models[number], paths[number])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    for model, values in zip(models, expected, strict=True):
        for found, value in zip(values_of(model), values, strict=True):
            assert found.tobytes() == value.tobytes()


@pytest.mark.parametrize("way", ROUTES)
def test_loaded_variables_can_be_trained(card, paths, way):
    """An update in place of one variable must not reach its neighbours in the slab."""
    if way == "scatter":
        needs_kernels(card)
    model = build(card)
    fastassign.load_weights(model, paths[0], options=load_options(**ROUTES[way][0]))
    expected = values_of(model)
    for step in (1, 2):
        for number, weight in enumerate(model.weights):
            weight._value.assign_add(tf.ones_like(weight._value))
            expected[number] = expected[number] + np.float32(1)
            if number % 5 == step:
                for found, value in zip(values_of(model), expected, strict=True):
                    assert found.tobytes() == value.tobytes()
    for found, value in zip(values_of(model), expected, strict=True):
        assert found.tobytes() == value.tobytes()
    check(model, paths[1], load_options(**ROUTES[way][0]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simulated", pytest.param("real", marks=pytest.mark.gpu)])
def test_out_of_memory_changes_nothing(kind, tmp_path):
    script = Path(__file__).parents[1] / "support" / "out_of_memory.py"
    if kind == "real" and not tf.config.list_logical_devices("GPU"):
        pytest.skip(f"TensorFlow sees no card: {why_unseen()}. {HOW}")
    done = subprocess.run(
        [sys.executable, script, kind, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["error"] == "DeviceMemory"
    assert "DeviceOptions(window_bytes=)" in found["hint"]
    assert found["unchanged"] and found["again"]
