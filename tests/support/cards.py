"""A file of plain arrays, and variables for them on devices: what the tests of loads to devices load."""

import h5py
import numpy as np
import pytest
import tensorflow as tf

from support.options import load_options

PAGE = 4096
SLOT = 4 * PAGE  # the least
PLACES = ("CPU:1", "CPU:2", "CPU:0")

# Every way to a device.
ROUTES = pytest.mark.parametrize(
    ("route", "cut"), [("direct", "auto"), ("fused", "split"), ("fused", "function"), ("fused", "scatter")]
)

SHAPES = [(128, 65), (3,), (60, 60), (), (40, 50), (7, 5), (2048,), (33,), (200, 100), *[(5, 5)] * 12, (6000,)]


def values(seed=0):
    """Return values of all sizes, by name."""
    rng = np.random.default_rng(seed)
    return {f"v{i:02}": np.asarray(rng.normal(size=shape), "f4") for i, shape in enumerate(SHAPES)}


def write(path, arrays):
    """Write a file of arrays; return the path."""
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    return path


def variables(arrays, *places, dtype="float32"):
    """Make variables for arrays, on devices in turn, that hold something else."""
    made = {}
    for number, (name, value) in enumerate(arrays.items()):
        with tf.device(places[number % len(places)]):
            made[name] = tf.Variable(tf.fill(value.shape, tf.cast(0.5, dtype)), name=name)
    return made


def assert_loaded(made, arrays):
    """Assert that variables hold these values, to the bit."""
    for name, variable in made.items():
        expected = arrays[name].astype(variable.dtype.as_numpy_dtype)
        assert variable.numpy().tobytes() == expected.tobytes(), name


def assert_state(made, assigned, old, new):
    """Assert that exactly the variables that are named hold new values, and the others what they held."""
    named = {name.removesuffix(":0") for name in assigned}
    assert len(named) == len(assigned)
    assert named <= made.keys()
    for name, variable in made.items():
        expected = (new if name in named else old)[name].astype(variable.dtype.as_numpy_dtype)
        assert variable.numpy().tobytes() == expected.tobytes(), name


def contents(made):
    """Return what variables hold."""
    return {name: variable.numpy() for name, variable in made.items()}


def reset(made):
    """Let variables hold something else again."""
    for variable in made.values():
        variable.assign(tf.fill(variable.shape, tf.cast(0.5, variable.dtype)))


def tiny(**how):
    """Return options under which these arrays are large."""
    small = {"slot_bytes": SLOT, "device_window_bytes": 6 * SLOT, "device_threads": 2, "index_cache": False}
    return load_options(**{**small, **how})
