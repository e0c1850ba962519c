"""What is replaced while calls go through fastassign, and how both ways compare."""

import importlib
import logging
import sys
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
import tf_keras

import fastassign as fa
from fastassign.patching import seams
from support.differential import calls_logged, fill, observe, quiet, save, snapshot

# Files that hold a whole model.
ENDS = [".keras", "whole.h5"]

# Every place where a replaced function can be found, public names too.
PLACES = [
    *((sys.modules[seam.module], seam.name) for library in seams.SEAMS.values() for seam in library),
    (keras.saving, "load_weights"),
    (tf_keras.backend, "batch_set_value"),
    (importlib.import_module("keras._tf_keras.keras.saving"), "load_weights"),
]
PLACES = [place for place in PLACES if place[1] not in seams.OPTIONAL or hasattr(*place)]


def look_up(owner, name):
    """Return what a place holds."""
    *outer, name = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return vars(owner)[name]


ORIGINALS = [look_up(*place) for place in PLACES]


def replaced():
    """Return the names of what is not the library's own."""
    now = [look_up(*place) for place in PLACES]
    return [name for (_, name), was, is_ in zip(PLACES, ORIGINALS, now, strict=True) if was is not is_]


@contextmanager
def accelerated(*, ours=None, stock=None):
    """Accelerate, and count the calls that go through fastassign, and those that the library does."""
    with calls_logged() as calls, fa.accelerate():
        assert len(replaced()) == len(PLACES)
        yield calls
    assert replaced() == []
    counted = [sum(call.levelno == level for call in calls) for level in (logging.DEBUG, logging.INFO)]
    told = [call.getMessage() for call in calls]
    assert ours is None or counted[0] == ours, told
    assert stock is None or counted[1] == stock, told


def trained(k):
    """Make a model whose optimizer has all its variables."""
    layers = [k.layers.Dense(3, name="d"), k.layers.BatchNormalization(name="n")]
    model = k.Sequential([k.Input((4,)), *layers], name="m")
    model.compile(optimizer=k.optimizers.Adam(0.1), loss=k.losses.MeanSquaredError())
    model.optimizer.build(model.trainable_variables)
    return model


def saved(model, path):
    with quiet():
        return str(save(fill(model), path))


def state(model):
    """Return all that a loaded model holds, and what it computes."""
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    outputs = [np.asarray(y).tobytes() for y in tf.nest.flatten(model(x))]
    optimizer = getattr(model, "optimizer", None)
    configs = model.get_config(), optimizer and optimizer.get_config()
    return contents(model), outputs, type(model), *configs


def contents(model):
    """Return what its variables hold; the names of an optimizer's depend on how many there were before."""
    return [row[1:] for row in snapshot(model)]


def seeded(call):
    """Make a call with the same random numbers as others: some errors hold a variable's first value."""
    keras.utils.set_random_seed(1)
    return observe(call)


def both(call, *, ours=1, stock=0):
    """Do the same by the library itself, and by what is replaced; compare what can be seen from outside."""
    first = seeded(call)
    with accelerated(ours=ours, stock=stock) as calls:
        second = seeded(call)
    assert (type(second.error), str(second.error)) == (type(first.error), str(first.error))
    assert (second.warned, second.logged) == (first.warned, first.logged)
    return first, second, [call.getMessage() for call in calls]


def told_why(call, reason, *, ours=0, stock=1):
    """Expect that the library does it, with the same outcome, and a line that says why."""
    first, second, told = both(call, ours=ours, stock=stock)
    assert any(reason in line for line in told), told
    return first, second
