"""What must hold in every TensorFlow 1 mode; three of the four are for a whole process, so this is also a program.

``python graph_modes.py MODE FOLDER`` runs the checks of a mode in one process and writes to ``FOLDER/MODE.json`` the
traceback of each, or null. ``FOLDER`` holds what ``write_files`` made, eagerly, in another process.
"""

import json
import os
import sys
import traceback
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tensorflow as tf

if __name__ == "__main__":
    if sys.argv[1] == "no_v2":
        tf.compat.v1.disable_v2_behavior()
    else:
        tf.compat.v1.disable_eager_execution()
    if sys.argv[1] == "no_resources":
        tf.compat.v1.disable_resource_variables()

import h5py
import numpy as np
import pytest
import tf_keras
from tf_keras.src import backend as K

import fastassign as fa
from fastassign.errors import Unsupported
from fastassign.targets.variables import PLAIN
from support import models
from support import old_layouts as old

v1 = tf.compat.v1

# A graph in a process that is eager otherwise, and what is said once for a whole process.
MODES = ("graph", "no_eager", "no_v2", "no_resources")

MODELS = ("functional", "sequential", "nested_functional", "composite", "small")
# Which of them are loaded from legacy files, and which from those of Keras 3.
LEGACY = ("functional", "nested_functional", "composite")
KERAS3 = ("functional", "sequential", "nested_functional")
# Of these there is a file of the whole model, with optimizer, too.
WHOLE = ("functional", "sequential", "small")

CONVERSIONS = ("lstm", "cudnn_lstm")

DTYPES = ("float16", "bfloat16", "float32", "float64", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32",
          "int64", "uint64", "complex64", "complex128")  # fmt: skip
# Of the old kind there are none of these.
RESOURCE_DTYPES = ("float8_e4m3fn", "float8_e5m2", "int4", "uint4")

SHAPES = ((2, 3), (), (0, 3), (7,))


def build(name):
    """Build one of the models."""
    if name.startswith("nested_") or name == "composite":
        return models.nested(tf_keras, name.removeprefix("nested_"), sizes=(5, 3))[0]
    return models.chain(tf_keras, 5, 3, names=("a", "b")) if name == "small" else getattr(models, name)(tf_keras)


def scaled():
    """A model that normalises its input, top-level and nested."""
    L = tf_keras.layers
    inner = tf_keras.Sequential([tf_keras.Input((4,)), L.Normalization(name="inside"), L.Dense(3)], name="inner")
    inputs = tf_keras.Input((4,))
    return tf_keras.Model(inputs, inner(L.Normalization(name="outside")(inputs)), name="m")


class Own(tf_keras.layers.Layer):
    """Loads itself."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(4,))

    def call(self, x):
        return x * self.kernel

    def save_own_variables(self, store):
        store["k"] = self.kernel.numpy()

    def load_own_variables(self, store):
        self.kernel.assign(store["k"])


def with_own_method():
    """A dense layer, and one that loads itself."""
    layers = [tf_keras.layers.Dense(4, name="before"), Own(name="mine")]
    return tf_keras.Sequential([tf_keras.Input((4,)), *layers], name="m")


def inputs():
    """What models are called on."""
    return np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)


def outputs(model):
    """What a model makes of it, as a list."""
    made = model.predict(inputs(), verbose=0)
    return made if isinstance(made, list) else [made]


def write_files(folder):
    """Make the files that are loaded, with weights and predictions beside them; eagerly."""
    from support.differential import fill, quiet

    def write(model, name, suffixes):
        for suffix in suffixes:
            path = str(folder / f"{name}{suffix}")
            (model.save if "whole" in suffix else model.save_weights)(path)
        values = {f"w{i}": weight.numpy() for i, weight in enumerate(model.weights)}
        values.update({f"y{i}": output for i, output in enumerate(outputs(model))})
        np.savez(folder / f"{name}.npz", **values)

    with quiet():
        for seed, name in enumerate(MODELS):
            model = build(name)
            if name in WHOLE:
                models.compiled(tf_keras, model)
            fill(model, seed)
            for weight in model.weights:  # of which a root is taken
                if weight.name.endswith("variance:0"):
                    weight.assign(tf.abs(weight))
            write(model, name, (".h5", ".weights.h5", *([".whole.h5"] if name in WHOLE else [])))
        model = scaled()
        for layer in model._flatten_layers():
            if isinstance(layer, tf_keras.layers.Normalization):
                layer.adapt(3 * inputs() + len(layer.name))
        write(model, "scaled", (".h5", ".weights.h5"))
        write(fill(with_own_method()), "own", (".h5", ".weights.h5"))


@contextmanager
def world(mode):
    """Where nothing has been made yet: in a graph of its own, or in the process' default graph and Keras' session."""
    if mode == "graph":
        with tf.Graph().as_default(), v1.Session():
            yield
    else:
        K.clear_session()
        yield


def count_ops():
    """Return how many ops the graph has."""
    return len(v1.get_default_graph().get_operations())


def values(model):
    """Return the weights of a model as arrays."""
    return K.batch_get_value(model.weights)


def same(one, other):
    """Whether two lists of arrays are equal bit for bit."""
    return len(one) == len(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one, other, strict=True)
    )


def saved(folder, name, kind="w"):
    """Return what is in a file (``"w"``), or what the model that wrote it predicts (``"y"``)."""
    with np.load(folder / f"{name}.npz") as found:
        return [found[key] for key in sorted(found, key=lambda key: int(key[1:])) if key[0] == kind]


def others(model):
    """Return values for a model that no file holds."""
    return [np.full(tuple(weight.shape), 0.25, np.float32) for weight in model.weights]


def assert_loads(model, path, wanted, **arguments):
    """Assert that a load leaves a model with these values."""
    report = fa.load_weights(model, path, **arguments)
    assert report.assigned == len(wanted)
    assert set(report.routes) <= {"feed", "convert"}
    assert same(values(model), wanted)
    return report


# The checks. Each gets the folder.


def legacy_like_stock(folder, name, suffix=".h5"):
    path = folder / f"{name}{suffix}"
    model = build(name)
    assert_loads(model, path, saved(folder, name))
    model.set_weights(others(model))
    model.load_weights(str(path))
    assert same(values(model), saved(folder, name))


def keras3_file(folder, name):
    assert_loads(build(name), folder / f"{name}.weights.h5", saved(folder, name))


def keras3_file_by_stock(folder):
    """Stock says nothing and loads nothing: that is why the other tests compare with what was saved."""
    model = build("sequential")
    before = values(model)
    model.load_weights(str(folder / "sequential.weights.h5"))
    assert same(values(model), before)


def predictions_normalised(folder, suffix):
    """Constants that layers made of their weights are ops here, and follow."""
    model = scaled()
    fa.load_weights(model, folder / f"scaled{suffix}")
    for found, wanted in zip(outputs(model), saved(folder, "scaled", "y"), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def predictions_change_with_every_load(folder):
    """They are those of the eager model that was saved, and those of before once it has its weights again."""
    model = build("functional")
    model.set_weights(others(model))
    before = outputs(model)
    for suffix in (".h5", ".weights.h5"):
        fa.load_weights(model, folder / f"functional{suffix}")
        for found, wanted in zip(outputs(model), saved(folder, "functional", "y"), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
        fa.assign(zip(model.weights, others(model), strict=True))
        for found, wanted in zip(outputs(model), before, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def trained(model):
    """Compile a model and let it take one step."""
    model.compile("adam", "mean_squared_error")
    model.fit(inputs(), [np.ones((6, output.shape[-1]), np.float32) for output in model.outputs], epochs=1, verbose=0)
    return model


def after_training(folder):
    """The optimizer keeps what it has, and goes on."""
    model = trained(build("sequential"))
    slots = K.batch_get_value(model.optimizer.weights)
    count = None
    for suffix in (".whole.h5", ".weights.h5"):
        assert_loads(model, folder / f"sequential{suffix}", saved(folder, "sequential"))
        assert same(K.batch_get_value(model.optimizer.weights), slots)
        assert count in (None, count_ops())
        count = count_ops()
    model.fit(inputs(), np.ones((6, 3), np.float32), epochs=1, verbose=0)
    assert not same(values(model), saved(folder, "sequential"))
    assert not same(K.batch_get_value(model.optimizer.weights), slots)
    assert count_ops() == count


def training_like_stock(folder):
    """From the same weights the same step; memory that variables shared with anything would show here."""
    found = []
    for load in (lambda model, path: model.load_weights(str(path)), fa.load_weights):
        model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(5), tf_keras.layers.Dense(3)])
        path = folder / "train.h5"
        if not path.exists():
            model.save_weights(str(path))
        load(model, path)
        model.compile("adam", "mean_squared_error")
        model.fit(inputs(), np.ones((6, 3), np.float32), epochs=2, batch_size=6, shuffle=False, verbose=0)
        found.append(values(model))
        load(model, path)
        found.append(values(model))
    half = len(found) // 2
    assert all(same(a, b) for a, b in zip(found[:half], found[half:], strict=True))
    assert not same(found[0], found[1])


def two_ops_a_variable(folder):
    model = build("small")
    count = count_ops()
    fa.load_weights(model, folder / "small.h5")
    assert count_ops() == count + 2 * len(model.weights)


def no_new_op(folder, again):
    """After a first load, nothing that assigns makes an op."""
    model = build("small")
    fa.load_weights(model, folder / "small.h5")
    wanted = saved(folder, "small")
    assert same(values(model), wanted)  # where Keras asks, once for each variable, whether it is initialised
    count = count_ops()
    again(model, folder, wanted)
    assert count_ops() == count


def _loads(model, folder, wanted):
    for suffix in (".h5", ".whole.h5", ".weights.h5"):
        fa.assign([(weight, value) for weight, value in zip(model.weights, others(model), strict=True)])
        fa.load_weights(model, folder / f"small{suffix}")
        assert same(values(model), wanted)


def _loader(model, folder, wanted):
    with fa.Loader(model) as loader:
        for plan in ("made", "kept"):
            fa.assign(zip(model.weights, others(model), strict=True))
            assert loader.load(folder / "small.h5").plan == plan
            assert same(values(model), wanted)


def _assigns(model, folder, wanted):
    for _ in range(2):
        fa.assign(zip(model.weights, others(model), strict=True))
        assert same(values(model), others(model))
        fa.assign(zip(model.weights, wanted, strict=True))
        assert same(values(model), wanted)


def _stock_set_value(model, folder, wanted):
    for weight, value in zip(model.weights, others(model), strict=True):
        K.set_value(weight, value)
    assert same(values(model), others(model))


def _stock_batch_set_value(model, folder, wanted):
    K.batch_set_value(list(zip(model.weights, others(model), strict=True)))
    assert same(values(model), others(model))


def _stock_set_weights(model, folder, wanted):
    model.set_weights(others(model))
    assert same(values(model), others(model))


def _stock_load(model, folder, wanted):
    model.set_weights(others(model))
    model.load_weights(str(folder / "small.h5"))
    assert same(values(model), wanted)


def after_stock(folder, how):
    """What stock made is used: no new op, and its values are replaced."""
    model = build("small")
    how(model)
    count = count_ops()
    assert_loads(model, folder / "small.h5", saved(folder, "small"))
    fa.assign(zip(model.weights, others(model), strict=True))
    assert same(values(model), others(model))
    assert count_ops() == count


def _set_values(model):
    for weight in model.weights:
        K.set_value(weight, np.zeros(tuple(weight.shape)))


def nothing_is_fetched(folder):
    model = build("small")
    session, runs, options = K.get_session(), [], []
    run, make_callable = session.run, session._make_callable_from_options

    def spy_run(fetches, *args, **kwargs):
        runs.append(fetches)
        return run(fetches, *args, **kwargs)

    def spy_callable(given):
        options.append(given)
        made = make_callable(given)

        def call(*args, **kwargs):
            runs.append(made(*args, **kwargs))
            return runs[-1]

        return call

    with (
        mock.patch.object(session, "run", spy_run),
        mock.patch.object(session, "_make_callable_from_options", spy_callable),
    ):
        fa.load_weights(model, folder / "small.h5")
        fa.assign(zip(model.weights, others(model), strict=True))
    assert len(runs) == 2
    assert all(result == [] for result in runs)
    assert all(not given.fetch and len(given.target) == len(given.feed) == len(model.weights) for given in options)


def initialisers_do_not_run(folder):
    """What gets values is not initialised first, and what gets none stays as it is."""
    model = build("small")
    spare = v1.get_variable("spare", shape=(2,))
    fa.load_weights(model, folder / "small.h5")
    session = v1.get_default_session() or K._SESSION.session
    assert list(session.run(v1.report_uninitialized_variables([spare, *model.weights]))) == [b"spare"]
    assert same(values(model), saved(folder, "small"))  # here Keras initialises what it thinks it must


def a_value_of_each_dtype(folder, use_resource):
    session, pairs = K.get_session(), []
    for dtype in DTYPES + (RESOURCE_DTYPES if use_resource else ()):
        kind = tf.as_dtype(dtype)
        for i, shape in enumerate(SHAPES):
            array = np.arange(1, np.prod(shape, dtype=int) + 1).reshape(shape) % 7
            variable = variable_of(f"of/{dtype}/v{i}", shape, kind, use_resource)
            pairs.append((variable, array.astype(kind.as_numpy_dtype)))
    report = fa.assign(pairs, session)
    assert report.routes == {"feed": len(pairs)} and not report.cast
    found = session.run([variable.value() for variable, _ in pairs])
    for (variable, array), value in zip(pairs, found, strict=True):
        assert same([np.asarray(value)], [array]), variable.name


def variable_of(name, shape, dtype, use_resource):
    """Make a variable of either kind."""
    made = v1.get_variable(name, shape, tf.as_dtype(dtype), v1.zeros_initializer(), use_resource=use_resource)
    assert (type(made) is PLAIN) == use_resource
    return made


def casts_like_stock(folder, use_resource):
    session = K.get_session()
    rng = np.random.default_rng(0)
    floats = ("float64", "float32", "float16")
    sources = [(rng.normal(size=(3, 4)) * 50).astype(dtype) for dtype in (*floats, "int32", "int8", "bool")]
    dtypes = ("float32", "float16", "bfloat16", "float64", "int32", "complex64")
    one, other = (
        [
            (variable_of(f"{name}_{dtype}_{i}", (3, 4), dtype, use_resource), source)
            for dtype in dtypes
            for i, source in enumerate(sources)
        ]
        for name in ("stock", "ours")
    )
    K.batch_set_value(one)
    report = fa.assign(other, session)
    assert len(report.cast) == sum(source.dtype != dtype for dtype in dtypes for source in sources)
    stock, ours = ([variable.value() for variable, _ in pairs] for pairs in (one, other))
    for (variable, source), a, b in zip(other, *session.run([stock, ours]), strict=True):
        assert same([a], [b]), (variable.name, source.dtype)


def in_precision(dtype):
    """The sequential model with other dtypes."""
    L = tf_keras.layers
    layers = [
        L.Dense(5, name="first", dtype=dtype),
        L.BatchNormalization(name="norm", dtype=dtype),
        L.Dense(3, name="second", dtype=dtype),
    ]
    return tf_keras.Sequential([tf_keras.Input((4,)), *layers])


def files_of_another_dtype(folder):
    """Tensors of a file are cast too: single precision into half, and the reverse."""
    wanted = saved(folder, "sequential")
    half = in_precision("float16")
    report = fa.load_weights(half, folder / "sequential.h5")
    halves = [weight for weight in half.weights if weight.dtype.base_dtype == tf.float16]
    assert len(report.cast) == len(halves) >= 4
    found = values(half)
    assert same(found, [v.astype(w.dtype.as_numpy_dtype) for v, w in zip(wanted, half.weights, strict=True)])
    path = folder / "half.h5"
    half.save_weights(str(path))
    model = build("sequential")
    assert len(fa.load_weights(model, path).cast) == len(halves)
    assert same(values(model), [value.astype(np.float32) for value in found])


def mixed_precision(folder):
    """The variables are single precision, whatever they show inside a layer."""
    model = in_precision(tf_keras.mixed_precision.Policy("mixed_float16"))
    assert type(model.layers[0].kernel).__name__ == "AutoCastVariable"
    for suffix in (".h5", ".weights.h5"):
        model.set_weights(others(model))
        count = count_ops()
        assert not assert_loads(model, folder / f"sequential{suffix}", saved(folder, "sequential")).cast
        assert count_ops() == count


def by_name_like_stock(folder):
    """Names and shapes that do not all fit, skipped alike."""
    found = []
    for load in (lambda model, *args, **kwargs: model.load_weights(*args, **kwargs), fa.load_weights):
        model = models.chain(tf_keras, 5, 7, 2, names=("first", "second", "fourth"))
        model.set_weights(others(model))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load(model, str(folder / "functional.h5"), by_name=True, skip_mismatch=True)
        found.append((values(model), [str(warning.message) for warning in caught]))
    assert same(found[0][0], found[1][0])
    assert not same(found[0][0], others(model)), "nothing was loaded"


def conversion_like_stock(folder, name):
    shape, make, arrays, version, _ = old.CASES[name]
    model = old.single(shape, make)()
    path = old.file_for(folder / f"conversion_{name}.h5", model, arrays, version)
    found = []
    for load in (fa.load_weights, fa.load_weights, lambda model, path: model.load_weights(str(path))):
        model.set_weights(others(model))
        count = count_ops()
        report = load(model, path)
        assert count_ops() == count
        assert report is None or "convert" in report.routes
        found.append(values(model))
    assert same(found[0], found[2]) and same(found[1], found[2])
    assert not any(same([a], [b]) for a, b in zip(found[0], others(model), strict=True))


def own_method_is_refused(folder):
    model = with_own_method()
    model.set_weights(others(model))
    count = count_ops()
    with pytest.raises(Unsupported, match="load_own_variables") as caught:
        fa.load_weights(model, folder / "own.weights.h5")
    assert "mine" in str(caught.value) or "Own" in str(caught.value)
    assert same(values(model), others(model))
    assert count_ops() == count
    assert_loads(model, folder / "own.h5", saved(folder, "own"))  # legacy files know no such methods


def wrong_file_changes_nothing(folder):
    model = build("functional")
    model.set_weights(others(model))
    for suffix in (".h5", ".weights.h5"):
        with pytest.raises(fa.Mismatch):
            fa.load_weights(model, folder / f"sequential{suffix}")
    assert same(values(model), others(model))


def variables_by_name(folder):
    """As tf_keras names them, without a model."""
    session = K.get_session()
    names = {"first/kernel": (4, 5), "first/bias": (5,), "norm/moving_mean": (5,)}
    made = [variable_of(name, shape, "float32", name != "first/bias") for name, shape in names.items()]
    report = fa.load_weights(made, folder / "functional.whole.h5", session=session)
    assert report.assigned == 3 and report.routes == {"feed": 3}
    with h5py.File(folder / "functional.whole.h5") as file:
        wanted = [file[f"model_weights/{name.partition('/')[0]}/{name}:0"][()] for name in names]
    assert same(session.run([variable.value() for variable in made]), wanted)


CHECKS = {
    **{f"legacy_like_stock_{name}": partial(legacy_like_stock, name=name) for name in LEGACY},
    "whole_like_stock": partial(legacy_like_stock, name="functional", suffix=".whole.h5"),
    **{f"keras3_file_{name}": partial(keras3_file, name=name) for name in KERAS3},
    "keras3_file_by_stock": keras3_file_by_stock,
    "predictions_normalised_h5": partial(predictions_normalised, suffix=".h5"),
    "predictions_normalised_weights_h5": partial(predictions_normalised, suffix=".weights.h5"),
    "predictions_change_with_every_load": predictions_change_with_every_load,
    "after_training": after_training,
    "training_like_stock": training_like_stock,
    "two_ops_a_variable": two_ops_a_variable,
    "no_new_op_by_loads": partial(no_new_op, again=_loads),
    "no_new_op_by_a_loader": partial(no_new_op, again=_loader),
    "no_new_op_by_assign": partial(no_new_op, again=_assigns),
    "no_new_op_by_set_value": partial(no_new_op, again=_stock_set_value),
    "no_new_op_by_batch_set_value": partial(no_new_op, again=_stock_batch_set_value),
    "no_new_op_by_set_weights": partial(no_new_op, again=_stock_set_weights),
    "no_new_op_by_load_weights": partial(no_new_op, again=_stock_load),
    "after_set_value": partial(after_stock, how=_set_values),
    "after_set_weights": partial(after_stock, how=lambda model: model.set_weights(others(model))),
    "nothing_is_fetched": nothing_is_fetched,
    "initialisers_do_not_run": initialisers_do_not_run,
    "a_value_of_each_dtype_in_resources": partial(a_value_of_each_dtype, use_resource=True),
    "a_value_of_each_dtype_in_refs": partial(a_value_of_each_dtype, use_resource=False),
    "casts_like_stock_into_resources": partial(casts_like_stock, use_resource=True),
    "casts_like_stock_into_refs": partial(casts_like_stock, use_resource=False),
    "files_of_another_dtype": files_of_another_dtype,
    "mixed_precision": mixed_precision,
    "by_name_like_stock": by_name_like_stock,
    **{f"conversion_like_stock_{name}": partial(conversion_like_stock, name=name) for name in CONVERSIONS},
    "own_method_is_refused": own_method_is_refused,
    "wrong_file_changes_nothing": wrong_file_changes_nothing,
    "variables_by_name": variables_by_name,
}


# What depends on the file, the layers or the dtype, and not on what was said for a whole process: of the children only
# that without TensorFlow 2's behaviour, whose layers and variables are of the old kinds, does these too.
NOT_OF_A_PROCESS = {
    "legacy_like_stock_nested_functional",
    "legacy_like_stock_composite",
    "keras3_file_sequential",
    "keras3_file_nested_functional",
    "predictions_normalised_weights_h5",
    "training_like_stock",
    "a_value_of_each_dtype_in_resources",
    "a_value_of_each_dtype_in_refs",
    "casts_like_stock_into_resources",
    "casts_like_stock_into_refs",
    "files_of_another_dtype",
    "mixed_precision",
    "by_name_like_stock",
    *(f"conversion_like_stock_{name}" for name in CONVERSIONS),
}
assert not NOT_OF_A_PROCESS - CHECKS.keys()


def checks_of(mode):
    """Return the names of what is checked in a mode."""
    return [name for name in CHECKS if mode in {"graph", "no_v2"} or name not in NOT_OF_A_PROCESS]


def run(name, mode, folder):
    """Run one check in a world of its own."""
    with world(mode):
        CHECKS[name](folder)


def main(mode, folder):
    """Run all, and write down what came of each."""
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("error", module=r"fastassign(\.|$)")
    v1.logging.set_verbosity(v1.logging.ERROR)
    found = {}
    for name in checks_of(mode):
        try:
            run(name, mode, folder)
        except BaseException:  # noqa: BLE001 - for the process that asked
            found[name] = traceback.format_exc()
        else:
            found[name] = None
    (folder / f"{mode}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
