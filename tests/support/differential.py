"""Stock against fastassign: one file, two identical models, every variable, error and warning compared."""

import logging
import re
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import naming

import fastassign

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}

KERAS_VERSION = tuple(map(int, keras.__version__.split(".")[:2]))
TENSORFLOW_VERSION = tuple(map(int, tf.__version__.split(".")[:2]))

# Values are compared with every Keras; where its texts or checks changed, with the newest.
needs_keras_3_15 = pytest.mark.skipif(
    KERAS_VERSION < (3, 15), reason="fastassign has the texts and checks of Keras 3.15, this one's are older"
)

# A container missing in the file, of which stock warns whenever anything in it failed: also where the container only
# mirrors layers that failed under their own path. There fastassign does not repeat it (by_path.py).
_NESTED = "Skipping nested container at"
_MIRROR = "/_operations_by_depth/container"

# What fastassign says of a load that assigned nothing, where stock is silent.
_NOTHING = ("neither the model nor the file has weights", "the model has no weights")


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
    # Not clear_session, which also forgets TensorFlow's kernels: each then takes a while to come back.
    naming.reset_uids()
    tf_keras.backend.reset_uids()
    with tf.device("CPU:1") if ON_DEVICE else nullcontext():
        return build()


def variables(model):
    """Return all variables of a model, each once: weights, seeds, metrics, optimizer."""
    try:
        found = list(model.variables)
    except ValueError:  # tf_keras, not built
        return []
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
        # `g_idx` of a quantised layer holds positions, and saving follows them.
        if _numpy_dtype(variable) is not object and variable.name != "g_idx":
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
    """Build (or take the first of two twins), fill and save a model; return the path."""
    # tf_keras leaves a file open when it raises, and HDF5 writes over none that is open.
    path.unlink(missing_ok=True)
    with quiet():
        return save(fill(build[0] if isinstance(build, tuple) else fresh(build), seed), path)


def twins(build):
    """Build two models alike, to be used again and again: recurrent ones take a second to build."""
    with quiet():
        return fresh(build), fresh(build)


@cache
def twins_of(make, k):
    """Return the twins of a model that many tests use: ``make(k)``."""
    return twins(lambda: make(k))


def write_legacy(path, layers, *, version=None, backend=None):
    """Write a legacy file by hand: (layer, [(weight name, values)])."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([name.encode() for name, _ in layers])
        for key, value in (("keras_version", version), ("backend", backend)):
            if value:
                file.attrs[key] = value.encode()
        for name, weights in layers:
            group = file.create_group(name)
            group.attrs["weight_names"] = np.array([weight.encode() for weight, _ in weights])
            for weight, values in weights:
                group[weight] = values
    return path


class _Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.texts = []
        self.records = []

    def emit(self, record):
        self.texts.append(record.getMessage())
        self.records.append(record)


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
def calls_logged():
    """Collect what fastassign logs of the calls that are redirected: at DEBUG its own, at INFO the library's."""
    handler, logger = _Records(), logging.getLogger("fastassign")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


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
    return Outcome(result, error, [(w.category, _anonymous(str(w.message))) for w in caught], texts)


def _anonymous(text):
    """Take out where in memory an object stands, which tf_keras writes into its texts."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def stock_load(model, path, **arguments):
    """Load by the library itself."""
    return observe(lambda: model.load_weights(str(path), **arguments))


# Set by `pytest --accelerated` and the fixture `both_ways`: `our_load` is then what `accelerated_load` is.
ACCELERATED = False

# Set by `pytest --on-device` and the fixture `copies`: models stand on a simulated device, and our loads go there
# through small slots.
ON_DEVICE = False
COPIES = []


@contextmanager
def _driver():
    if not ON_DEVICE:
        yield
        return
    from support import simulated

    with pytest.MonkeyPatch.context() as patch:
        with simulated.simulated(patch) as driver:
            yield
        COPIES.append(len(driver.copies))


def our_load(model, path, **arguments):
    """Load by fastassign."""
    if ACCELERATED:
        return accelerated_load(model, path, **arguments)
    if ON_DEVICE:
        options = arguments.get("options") or fastassign.LoadOptions()
        arguments["options"] = replace(options, device=replace(options.device, slot_bytes=16_384))
    with _driver():
        return observe(lambda: fastassign.load_weights(model, path, **arguments))


def accelerated_load(model, path, *, atomic=False, **arguments):
    """Load by the library's own call, through fastassign; the result is the report of that."""

    def load():
        with calls_logged() as calls, fastassign.accelerate():
            assert model.load_weights(str(path), **arguments) is None
        assert [call.levelname for call in calls] == ["DEBUG"], [call.getMessage() for call in calls]
        return calls[0].report

    with _driver():
        return observe(load)


def assert_untouched(model, before):
    """Assert that no variable of a model changed."""
    assert differences(snapshot(model), before) == []


def same_warnings(stock, ours):
    """Assert that two calls warned alike."""
    # numpy warns of overflows, discarded parts and old protocols while it casts; how often depends on who casts.
    numeric = (RuntimeWarning, np.exceptions.ComplexWarning, DeprecationWarning)
    wanted = [w for w in stock.warned if not issubclass(w[0], numeric)]
    found = [w for w in ours.warned if not issubclass(w[0], numeric) and not w[1].endswith(_NOTHING)]
    nested = [w for w in found if w[1].startswith(_NESTED)]
    others = [w for w in wanted if not w[1].startswith(_NESTED)]
    assert [w for w in found if w not in nested] == others
    assert all(w in wanted for w in nested)
    if not any("objects could not be loaded" in w[1] for w in others):
        assert all(w in nested for w in wanted if w not in others and _MIRROR not in w[1])
    assert ours.logged == stock.logged


def check(
    build: Callable[[], Any] | tuple[Any, Any],
    path,
    *,
    skip: Callable[[Any], list] | None = None,
    stock: Callable[..., Outcome] = stock_load,
    loader: Callable[..., Outcome] = our_load,
    **arguments,
) -> Comparison:
    """Load a file by stock and by fastassign into two models built alike, and compare all that can be seen.

    Both by ``fastassign.load_weights``, and by the library's own call inside ``fastassign.accelerate``.

    Parameters
    ----------
    build : callable or tuple
        Makes the model, the same at every call; or two models made alike.
    path : path
        The file.
    skip : callable, optional
        Gives the ``objects_to_skip`` of a model.
    stock, loader : callable
        Run the two loads.
    arguments
        Of ``load_weights``.
    """
    a, b = build if isinstance(build, tuple) else twins(build)
    perturb(a, 0.25)
    before = snapshot(a)
    extra = [{"objects_to_skip": skip(model)} if skip else {} for model in (a, b)]
    theirs = stock(a, path, **arguments, **extra[0])
    after = snapshot(a)
    loads = [loader, accelerated_load] if loader is our_load and not ACCELERATED else [loader]
    outcomes = []
    for load in loads:
        # Texts of some errors hold the variable's value, so both models need the same there.
        perturb(b, 0.25 if theirs.error or theirs.warned else 0.75)
        unchanged = snapshot(b)
        ours = load(b, path, **arguments, **extra[1])
        outcomes.append(ours)
        if theirs.error is not None:
            assert ours.error is not None, f"stock raised {theirs.error!r}"
            assert isinstance(ours.error, _builtin_of(theirs.error)), repr(ours.error)
            assert _anonymous(str(ours.error)) == _anonymous(text_of(theirs.error))
            assert_untouched(b, unchanged)
            continue
        if ours.error is not None:
            raise ours.error
        same_warnings(theirs, ours)
        rows = zip(after, before, snapshot(b), unchanged, strict=True)
        # Equal, or left alone by both.
        wrong = [x[0] for x, x0, y, y0 in rows if x[:3] != y[:3] or (x[3] != y[3] and (x[3] != x0[3] or y[3] != y0[3]))]
        assert wrong == []
    return Comparison(theirs, outcomes[0], a, b)


def text_of(error):
    """Return the message of an exception; ``str`` of a KeyError is its ``repr``."""
    return str(error.args[0]) if isinstance(error, KeyError) else str(error)


def _builtin_of(error):
    """Return the builtin that an exception is an instance of (h5py and zipfile have their own classes)."""
    return next(cls for cls in type(error).__mro__ if cls.__module__ == "builtins")
