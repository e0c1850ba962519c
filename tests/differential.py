"""Stock against fastassign: one file, two identical models, every variable, error and warning compared."""

import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf
import tf_keras
from keras.src.legacy.saving import legacy_h5_format

import fastassign

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}

# Containers that only mirror layers which failed under their own path already. Stock warns that they are missing in
# the file whenever anything failed; fastassign leaves that warning out (see matching/by_path.py).
_MIRRORS = ("_operations_by_depth/", "_compiled_trainable_state/")


@dataclass
class Outcome:
    """What a call returned, raised, warned and logged."""

    result: Any
    error: BaseException | None
    warned: list[tuple[type, str]]
    logged: list[str]


@dataclass
class Comparison:
    """A load by both, with the models as they were left."""

    stock: Outcome
    ours: Outcome
    stock_model: Any
    our_model: Any

    @property
    def report(self):
        """The report of our load."""
        return self.ours.result


def is_tf_keras(model):
    """Whether a model belongs to tf_keras."""
    return isinstance(model, (tf_keras.layers.Layer, tf_keras.Model))


def fresh(build):
    """Build a model with the names that it would have in a process of its own."""
    keras.backend.clear_session(free_memory=False)
    tf_keras.backend.reset_uids()
    return build()


def variables(model):
    """Return all variables of a model, each once: weights, seeds, metrics, optimizer."""
    found = list(model.variables)
    for layer in model._flatten_layers():
        found += layer.variables
        found += [v for v in vars(layer).values() if isinstance(v, (keras.Variable, tf.Variable))]
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        own = optimizer.variables
        found += own() if callable(own) else own
    return list({id(v): v for v in found}.values())


def constants(model):
    """Return what finalize_state makes of variables: tensors that calls use in their place."""
    found = []
    for layer in model._flatten_layers():
        for name in ("mean", "variance", "idf_weights_const"):
            value = getattr(layer, name, None)
            if tf.is_tensor(value) and not isinstance(value, tf.Variable):
                found.append((f"{layer.name}.{name}", np.asarray(value)))
    return found


def value_of(variable):
    """Return the value a variable stores, autocasting aside."""
    if isinstance(variable, keras.Variable):
        variable = variable._value
    variable = getattr(variable, "_variable", variable)
    return np.asarray(variable.numpy())


def snapshot(model):
    """Return name, dtype, shape and bytes of every variable and finalised constant."""
    values = [(getattr(v, "path", v.name), value_of(v)) for v in variables(model)] + constants(model)
    return [(name, str(value.dtype), value.shape, value.tobytes()) for name, value in values]


def differences(one, other):
    """Return the names of what differs between two snapshots."""
    assert [row[:3] for row in one] == [row[:3] for row in other], "the models are not built alike"
    return [a[0] for a, b in zip(one, other, strict=True) if a[3] != b[3]]


def _set(variable, value):
    target = variable._value if isinstance(variable, keras.Variable) else variable
    target.assign(value)


def _numpy_dtype(variable):
    dtype = variable._dtype if isinstance(variable, keras.Variable) else variable.dtype.base_dtype.name
    return tf.as_dtype(dtype).as_numpy_dtype


def random_values(shape, dtype, rng):
    """Return values that no other variable has, of any dtype."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    return np.asarray(rng.normal(size=shape)).astype(dtype)


def fill(model, seed=0):
    """Give every variable random values."""
    rng = np.random.default_rng(seed)
    for variable in variables(model):
        if _numpy_dtype(variable) is not object:
            _set(variable, random_values(tuple(variable.shape), _numpy_dtype(variable), rng))
    return model


def perturb(model, constant):
    """Give every variable the same value, which no file holds."""
    for variable in variables(model):
        if _numpy_dtype(variable) is not object:
            _set(variable, np.full(tuple(variable.shape), constant).astype(_numpy_dtype(variable)))
    return model


def save(model, path):
    """Save by stock, in the format that the name asks for; ``whole.h5`` and ``.keras`` hold the model too."""
    name = str(path)
    if name.endswith((".keras", "whole.h5")):
        model.save(name)
    elif name.endswith(".weights.h5") or is_tf_keras(model):
        model.save_weights(name)
    else:
        with h5py.File(name, "w") as file:
            legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


def saved(build, path, seed=0):
    """Build, fill and save a model; return the path."""
    with quiet():
        return save(fill(fresh(build), seed), path)


class _Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


@contextmanager
def logged():
    """Collect what TensorFlow and absl log."""
    handler = _Records()
    loggers = [logging.getLogger("tensorflow"), logging.getLogger("absl")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield handler.texts
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


@contextmanager
def quiet():
    """Keep warnings of stock's saving to itself."""
    with warnings.catch_warnings(), logged():
        warnings.simplefilter("ignore")
        yield


def observe(call):
    """Run a call and note all that can be seen of it."""
    result = error = None
    with warnings.catch_warnings(record=True) as caught, logged() as texts:
        warnings.simplefilter("always")
        try:
            result = call()
        except Exception as raised:  # noqa: BLE001 - the error is what is compared
            error = raised
    return Outcome(result, error, [(w.category, str(w.message)) for w in caught], texts)


def stock_load(model, path, **arguments):
    """Load by the library itself."""
    return observe(lambda: model.load_weights(str(path), **arguments))


def our_load(model, path, **arguments):
    """Load by fastassign."""
    return observe(lambda: fastassign.load_weights(model, path, **arguments))


def assert_untouched(model, before):
    """Assert that no variable of a model changed."""
    assert differences(snapshot(model), before) == []


def same_warnings(stock, ours):
    """Assert that two calls warned alike, mirrored containers aside."""
    wanted = [w for w in stock.warned if not (w[1].startswith("Skipping nested") and any(m in w[1] for m in _MIRRORS))]
    # numpy warns of overflows and discarded parts while it casts; how often depends on who casts.
    numeric = (RuntimeWarning, np.exceptions.ComplexWarning)
    wanted = [w for w in wanted if not issubclass(w[0], numeric)]
    assert [w for w in ours.warned if not issubclass(w[0], numeric)] == wanted
    assert ours.logged == stock.logged


def check(
    build: Callable[[], Any],
    path,
    *,
    skip: Callable[[Any], list] | None = None,
    stock: Callable[..., Outcome] = stock_load,
    loader: Callable[..., Outcome] = our_load,
    **arguments,
) -> Comparison:
    """Load a file by stock and by fastassign into two models built alike, and compare all that can be seen.

    Parameters
    ----------
    build : callable
        Makes the model, the same at every call.
    path : path
        The file.
    skip : callable, optional
        Gives the ``objects_to_skip`` of a model.
    stock, loader : callable
        Run the two loads.
    arguments
        Of ``load_weights``.
    """
    with quiet():
        a, b = fresh(build), fresh(build)
    perturb(a, 0.25)
    before = snapshot(a)
    extra = [{"objects_to_skip": skip(model)} if skip else {} for model in (a, b)]
    theirs = stock(a, path, **arguments, **extra[0])
    # Texts of some errors hold the variable's value, so both models need the same there.
    perturb(b, 0.25 if theirs.error or theirs.warned else 0.75)
    unchanged = snapshot(b)
    ours = loader(b, path, **arguments, **extra[1])
    if theirs.error is not None:
        assert ours.error is not None, f"stock raised {theirs.error!r}"
        assert isinstance(ours.error, (type(theirs.error), fastassign.FastAssignError)), repr(ours.error)
        assert isinstance(ours.error, _builtin_of(theirs.error)), repr(ours.error)
        assert str(ours.error) == str(theirs.error)
        assert_untouched(b, unchanged)
        return Comparison(theirs, ours, a, b)
    if ours.error is not None:
        raise ours.error
    same_warnings(theirs, ours)
    after = zip(snapshot(a), before, snapshot(b), unchanged, strict=True)
    # Equal, or left alone by both.
    wrong = [x[0] for x, x0, y, y0 in after if x[:3] != y[:3] or (x[3] != y[3] and (x[3] != x0[3] or y[3] != y0[3]))]
    assert wrong == []
    return Comparison(theirs, ours, a, b)


def _builtin_of(error):
    """Return the builtin that an exception is an instance of (h5py and zipfile have their own classes)."""
    return next(cls for cls in type(error).__mro__ if cls.__module__ == "builtins")
