"""Whole models: architecture, weights and training of files that every Keras wrote, in Keras 3 and tf_keras."""

from __future__ import annotations

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from fastassign.architecture import unknown
from fastassign.architecture.saved import nodes, read_saved
from support import differential as d

L = tf_keras.layers

# Layers of tf_keras by the change that a file of them needs in Keras 3, each with the shape of its input.
LAYERS = {
    "dense": (lambda: L.Dense(3, kernel_regularizer="l2", kernel_constraint="max_norm", activation="gelu"), (4,)),
    "hard_sigmoid": (lambda: L.Activation("hard_sigmoid"), (4,)),
    "leaky": (lambda: L.LeakyReLU(0.2), (4,)),
    "prelu": (L.PReLU, (4,)),
    "elu": (lambda: L.ELU(0.5), (4,)),
    "relu": (lambda: L.ReLU(6.0, negative_slope=0.1, threshold=0.2), (4,)),
    "thresholded": (lambda: L.ThresholdedReLU(0.5), (4,)),
    "batch_normalization": (L.BatchNormalization, (4,)),
    "batch_normalization_axis": (lambda: L.BatchNormalization(axis=[1]), (4, 3)),
    "synchronized": (lambda: L.BatchNormalization(synchronized=False), (4,)),
    "layer_normalization": (L.LayerNormalization, (4,)),
    "group_normalization": (lambda: L.GroupNormalization(2), (4,)),
    "normalization": (L.Normalization, (4,)),
    "discretization": (lambda: L.Discretization([0.0, 1.0]), (4,)),
    "rescaling": (lambda: L.Rescaling(2.0), (4,)),
    "mixed_precision": (lambda: L.Dense(3, dtype="mixed_float16"), (4,)),
    "lstm": (lambda: L.LSTM(3), (6, 4)),
    "lstm_hard": (lambda: L.LSTM(3, recurrent_activation="hard_sigmoid", implementation=1), (6, 4)),
    "gru": (lambda: L.GRU(3), (6, 4)),
    "gru_before": (lambda: L.GRU(3, reset_after=False), (6, 4)),
    "simple_rnn": (lambda: L.SimpleRNN(3), (6, 4)),
    "bidirectional": (lambda: L.Bidirectional(L.LSTM(3, recurrent_activation="hard_sigmoid")), (6, 4)),
    "bidirectional_gru": (lambda: L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="sum"), (6, 4)),
    "time_distributed": (lambda: L.TimeDistributed(L.Conv1D(3, 2)), (6, 5, 4)),
    "cells": (lambda: L.RNN([L.LSTMCell(3), L.GRUCell(2)]), (6, 4)),
    "conv1d": (lambda: L.Conv1D(3, 2, padding="causal", dilation_rate=2), (6, 4)),
    "conv1d_transpose": (lambda: L.Conv1DTranspose(3, 2), (6, 4)),
    "separable1d": (lambda: L.SeparableConv1D(3, 2), (6, 4)),
    "depthwise1d": (lambda: L.DepthwiseConv1D(2), (6, 4)),
    "spatial_dropout": (lambda: L.SpatialDropout1D(0.1), (6, 4)),
    "conv2d": (lambda: L.Conv2D(4, 2, groups=2), (6, 6, 4)),
    "conv2d_transpose": (lambda: L.Conv2DTranspose(3, 2), (6, 6, 4)),
    "separable2d": (lambda: L.SeparableConv2D(3, 2), (6, 6, 4)),
    "depthwise2d": (lambda: L.DepthwiseConv2D(2), (6, 6, 4)),
    "upsampling": (lambda: L.UpSampling2D(interpolation="bilinear"), (6, 6, 4)),
    "resizing": (lambda: L.Resizing(3, 3), (6, 6, 4)),
    "random": (lambda: L.RandomRotation(0.1), (6, 6, 4)),
    "conv_lstm1d": (lambda: L.ConvLSTM1D(2, 2), (6, 6, 4)),
    "conv_lstm2d": (lambda: L.ConvLSTM2D(2, 2), (3, 6, 6, 4)),
    "conv3d_transpose": (lambda: L.Conv3DTranspose(3, 2), (4, 4, 4, 2)),
    "slash": (lambda: L.Dense(3, name="a/b"), (4,)),
}


def sequential(name):
    make, shape = LAYERS[name]
    return tf_keras.Sequential([L.Input(shape), make()])


def shared():
    a, b = L.Input((4,), name="a"), L.Input((4,), name="b")
    dense = L.Dense(4, name="shared/dense")
    both = [dense(a), dense(b)]
    return tf_keras.Model([a, b], [L.Concatenate()(both), L.Average()([L.Add()(both), a])])


def nested():
    inputs = L.Input((4,))
    inner = tf_keras.Sequential([L.Dense(4, input_shape=(4,)), L.BatchNormalization()], name="inner")
    functional = tf_keras.Model(inputs, L.Dense(4)(inputs), name="functional")
    return tf_keras.Model(inputs, L.Dense(2)(functional(inner(inner(inputs)))))


def attention():
    inputs = L.Input((5, 4))
    outputs = [L.MultiHeadAttention(2, 3)(inputs, value=inputs), L.Attention()([inputs, inputs])]
    return tf_keras.Model(inputs, [*outputs, L.AdditiveAttention()([inputs, inputs])])


def without_input():
    return tf_keras.Sequential([L.Conv2D(3, 2, input_shape=(6, 6, 4)), L.Flatten(), L.Dense(2)])


MODELS = {"shared": shared, "nested": nested, "attention": attention, "without_input": without_input}


def inputs_of(model, batch=3):
    rng = np.random.default_rng(0)
    return [
        rng.random((batch, *[size or 7 for size in each.shape[1:]])).astype(each.dtype.name) for each in model.inputs
    ]


def outputs_of(model, inputs):
    found = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [np.asarray(each) for each in (found if isinstance(found, (list, tuple)) else [found])]


def load(path, library="keras", **arguments):
    reports = []
    options = fa.LoadOptions(library=library, on_report=reports.append)
    with d.quiet():
        model = fa.load_model(path, options=options, **arguments)
    return model, reports[0]


def saved(model, path, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype.is_floating if hasattr(variable.dtype, "is_floating") else "float" in str(variable.dtype):
            variable.assign(rng.random(tuple(variable.shape)) * 0.5)
    for layer in model.layers:
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    with d.quiet():
        model.save(path)
    return path


def assert_close(ours, theirs, inputs):
    for one, other in zip(outputs_of(ours, inputs), outputs_of(theirs, inputs), strict=True):
        np.testing.assert_allclose(
            one.astype("f8"), other.astype("f8"), rtol=2e-3 if one.dtype == "f2" else 1e-5, atol=1e-6
        )


def assert_same_arrays(model, path):
    """Every tensor of the file is in the model, bit for bit."""
    left = [np.asarray(variable).tobytes() for variable in model.weights]
    with h5py.File(path) as file:
        group, keys = file["model_weights"], []
        group.visititems(lambda key, item: keys.append(key) if isinstance(item, h5py.Dataset) else None)
        for key in keys:
            left.remove(group[key][()].tobytes())
    assert left == []


class TestTfKerasFilesInKeras3:
    @pytest.mark.parametrize("name", LAYERS)
    def test_layers(self, name, tmp_path):
        theirs = sequential(name)
        path = saved(theirs, tmp_path / "m.h5")
        ours, report = load(path)
        assert isinstance(ours, keras.Model)
        assert_same_arrays(ours, path)
        assert report.assigned == len(ours.weights)
        assert_close(ours, theirs, inputs_of(theirs))

    @pytest.mark.parametrize("name", MODELS)
    def test_models(self, name, tmp_path):
        theirs = MODELS[name]()
        path = saved(theirs, tmp_path / "m.h5")
        ours, _ = load(path)
        assert_same_arrays(ours, path)
        assert_close(ours, theirs, inputs_of(theirs))
        with d.quiet():  # and again, as Keras 3 writes it
            ours.save(tmp_path / "again.keras")
            again = keras.models.load_model(tmp_path / "again.keras")
        assert_close(again, theirs, inputs_of(theirs))

    @pytest.mark.parametrize("name", ["lstm_hard", "bidirectional", "batch_normalization", "conv2d_transpose"])
    def test_archives(self, name, tmp_path):
        theirs = sequential(name)
        path = saved(theirs, tmp_path / "m.keras")
        ours, _ = load(path)
        assert isinstance(ours, keras.Model)
        assert_close(ours, theirs, inputs_of(theirs))

    @pytest.mark.slow
    def test_a_compiled_archive(self, tmp_path):
        """Opened and compiled; the state of the optimizer stays behind, and the report says so."""
        theirs = trained(tf_keras, tf_keras.optimizers.Adam(0.25))
        with d.quiet():
            theirs.save(tmp_path / "m.keras")
        ours, report = load(tmp_path / "m.keras")
        assert float(ours.optimizer.learning_rate) == 0.25
        assert "optimizer" in report.skipped[0]
        assert_close(ours, theirs, [np.ones((2, 4), "f4")])
        assert np.isfinite(fit(ours, 1)).all()

    def test_an_argument_that_mattered(self, tmp_path):
        path = saved(tf_keras.Sequential([L.Input((6, 4)), L.LSTM(3, time_major=True)]), tmp_path / "m.h5")
        with pytest.raises(fa.FastAssignError, match="time_major=True, which no longer exists"):
            load(path)


class TestOldConfigurations:
    """Files of Keras 1 and 2, made from files of tf_keras."""

    def rewritten(self, path, change):
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            changed = change(config) or config
            file.attrs["model_config"] = json.dumps(changed)
            file.attrs["keras_version"] = "2.0.8"
        return path

    def test_a_list_of_layers(self, tmp_path):
        theirs = without_input()

        def as_list(config):
            config["config"] = [each for each in config["config"]["layers"] if each["class_name"] != "InputLayer"]

        path = self.rewritten(saved(theirs, tmp_path / "m.h5"), as_list)
        ours, report = load(path)
        assert_same_arrays(ours, path)
        assert_close(ours, theirs, inputs_of(theirs))
        assert "an input layer added to a Sequential" in report.upgraded

    @pytest.mark.parametrize("library", ["keras", "tf_keras"])
    def test_a_gru_that_does_not_say(self, library, tmp_path):
        theirs = tf_keras.Sequential([L.Input((6, 4)), L.Bidirectional(L.GRU(3, reset_after=False))])

        def silent(config):
            for node in nodes(config):
                if isinstance(node["config"], dict):
                    node["config"].pop("reset_after", None)

        path = self.rewritten(saved(theirs, tmp_path / "m.h5"), silent)
        ours, report = load(path, library)
        assert_close(ours, theirs, inputs_of(theirs))
        assert "reset_after=False for GRUs that do not have the argument" in report.upgraded

    @pytest.mark.parametrize("library", ["keras", "tf_keras"])
    def test_a_wrapper_of_a_custom_layer(self, library, tmp_path):
        def scaled(k):
            def build(self, shape):
                self.scale = self.add_weight(name="scale", shape=(shape[-1],))

            members = {"build": build, "call": lambda self, x: x * self.scale}
            return type("Scaled", (k.layers.Layer,), members)

        theirs = tf_keras.Sequential([L.Input((3, 4)), L.TimeDistributed(scaled(tf_keras)())])

        def older(config):
            for node in nodes(config):
                node.pop("module", None)
                node.pop("registered_name", None)

        path = self.rewritten(saved(theirs, tmp_path / "m.h5"), older)
        custom = scaled(keras if library == "keras" else tf_keras)
        ours, _ = load(path, library, custom_objects={"Scaled": custom})
        assert_close(ours, theirs, inputs_of(theirs))

    def test_initializers(self, tmp_path):
        theirs = sequential("dense")

        def older(config):
            for layer in config["config"]["layers"]:
                if "kernel_initializer" in layer["config"]:
                    layer["config"]["kernel_initializer"] = {
                        "class_name": "VarianceScaling",
                        "config": {"distribution": "normal", "mode": "fan_in", "scale": 2.0, "dtype": "float32"},
                    }

        path = self.rewritten(saved(theirs, tmp_path / "m.h5"), older)
        ours, _ = load(path)
        assert_close(ours, theirs, inputs_of(theirs))


def keras_1_file(path, model, layers):
    """Write the file that Keras 1.2 would have written for a tf_keras model, in TensorFlow's dimension order."""
    with h5py.File(path, "w") as file:
        config = [{"class_name": name, "config": {"trainable": True, **arguments}} for name, arguments in layers]
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            arrays = layer.get_weights()
            if isinstance(layer, L.LSTM):
                gates = [np.split(array, 4, -1) for array in arrays]
                # Today's order is i, f, c, o.
                arrays = [gates[part][gate] for gate in (0, 2, 1, 3) for part in range(3)]
            inner = group.create_group(layer.name)
            names = [f"{layer.name}_{i}" for i in range(len(arrays))]
            inner.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, arrays, strict=True):
                inner[name] = array
    return path


def filled(model):
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.random(tuple(variable.shape)) * 0.5)
    return model


@pytest.mark.parametrize("library", ["keras", "tf_keras"])
class TestKeras1:
    """Made by hand after the `get_config` methods of Keras 1.2: no library of today reads or writes such files."""

    def test_convolutions(self, library, tmp_path):
        parts = [
            L.Conv2D(4, (2, 3), padding="same", activation="relu", input_shape=(6, 6, 2), name="c"),
            L.MaxPooling2D(name="m"),
            L.BatchNormalization(name="b"),
            L.Dropout(0.5, name="p"),
            L.Flatten(name="f"),
            L.Dense(3, use_bias=False, name="d"),
        ]
        model = filled(tf_keras.Sequential(parts))
        regularizer = {"name": "WeightRegularizer", "l1": 0.0, "l2": 0.01}
        constraint = {"name": "MaxNorm", "m": 2, "axis": 0}
        layers = [
            ("Convolution2D", {"name": "c", "batch_input_shape": [None, 6, 6, 2], "input_dtype": "float32",
             "nb_filter": 4, "nb_row": 2, "nb_col": 3, "init": "glorot_uniform", "activation": "relu",
             "border_mode": "same", "subsample": [1, 1], "dim_ordering": "tf", "W_regularizer": regularizer,
             "b_regularizer": None, "activity_regularizer": None, "W_constraint": constraint,
             "b_constraint": None, "bias": True}),
            ("MaxPooling2D", {"name": "m", "pool_size": [2, 2], "strides": [2, 2], "border_mode": "valid",
             "dim_ordering": "tf"}),
            ("BatchNormalization", {"name": "b", "epsilon": 0.001, "mode": 0, "axis": -1, "momentum": 0.99,
             "gamma_regularizer": None, "beta_regularizer": None}),
            ("Dropout", {"name": "p", "p": 0.5}),
            ("Flatten", {"name": "f"}),
            ("Dense", {"name": "d", "output_dim": 3, "init": "normal", "activation": "linear", "W_regularizer": None,
             "b_regularizer": None, "activity_regularizer": None, "W_constraint": None, "b_constraint": None,
             "bias": False, "input_dim": None}),
        ]  # fmt: skip
        ours, report = load(keras_1_file(tmp_path / "m.h5", model, layers), library)
        assert_close(ours, model, inputs_of(model))
        assert report.assigned == len(model.weights)
        layer = ours.get_layer("c")
        assert float(layer.kernel_regularizer.l2) == pytest.approx(0.01)
        assert layer.kernel_constraint.max_value == 2
        assert "Keras 1's names replaced" in report.upgraded

    def test_recurrent(self, library, tmp_path):
        parts = [
            L.Embedding(9, 4, input_length=5, name="e"),
            L.LSTM(3, recurrent_activation="hard_sigmoid", name="l"),
            L.Dense(2, activation="softmax", name="d"),
        ]
        model = filled(tf_keras.Sequential(parts))
        layers = [
            ("Embedding", {"name": "e", "batch_input_shape": [None, 5], "input_dtype": "int32", "input_dim": 9,
             "output_dim": 4, "init": "uniform", "input_length": 5, "mask_zero": False, "W_regularizer": None,
             "activity_regularizer": None, "W_constraint": None, "dropout": 0.0}),
            ("LSTM", {"name": "l", "return_sequences": False, "go_backwards": False, "stateful": False, "unroll": False,
             "consume_less": "cpu", "input_dim": 4, "input_length": None, "output_dim": 3, "init": "glorot_uniform",
             "inner_init": "orthogonal", "forget_bias_init": "one", "activation": "tanh",
             "inner_activation": "hard_sigmoid", "W_regularizer": None, "U_regularizer": None, "b_regularizer": None,
             "dropout_W": 0.0, "dropout_U": 0.0}),
            ("Dense", {"name": "d", "output_dim": 2, "init": "glorot_uniform", "activation": "softmax",
             "W_regularizer": None, "b_regularizer": None, "activity_regularizer": None, "W_constraint": None,
             "b_constraint": None, "bias": True, "input_dim": 3}),
        ]  # fmt: skip
        ours, _ = load(keras_1_file(tmp_path / "m.h5", model, layers), library)
        assert_close(ours, model, [np.arange(15, dtype="i4").reshape(3, 5) % 9])

    @pytest.mark.parametrize(
        ("layer", "text"),
        [
            (("BatchNormalization", {"name": "b", "mode": 1}), "of mode 1"),
            (("Merge", {"name": "m", "mode": "cos"}), "merges by 'cos'"),
            (("Embedding", {"name": "e", "dropout": 0.5, "input_dim": 2}), "Embedding with dropout"),
        ],
    )
    def test_what_no_later_keras_has(self, library, layer, text, tmp_path):
        model = tf_keras.Sequential([L.Dense(2, input_shape=(3,), name="d")])
        with pytest.raises(fa.FastAssignError, match=text):
            load(keras_1_file(tmp_path / "m.h5", model, [layer]), library)


class TestKeras3Files:
    def model(self):
        inputs = keras.Input((4,))
        x = keras.layers.Dense(4)(inputs) + inputs
        x = keras.layers.Add()([x, keras.ops.tanh(x) / 2.0])
        return keras.Model(inputs, keras.layers.Dense(2)(x))

    def test_operators_in_legacy_files(self, tmp_path):
        """Keras 3 can't load its own file: it takes `+` for a layer of one argument."""
        theirs = self.model()
        path = saved(theirs, tmp_path / "m.h5")
        with pytest.raises((TypeError, ValueError)), d.quiet():
            keras.models.load_model(path)
        ours, _ = load(path)
        assert_same_arrays(ours, path)
        assert_close(ours, theirs, [np.ones((2, 4), "f4")])

    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", ["h5", "keras"])
    @pytest.mark.parametrize("loss", ["mse", "mae", "mean_squared_error"])
    def test_short_names_of_losses(self, suffix, loss, tmp_path):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile("adam", loss, metrics=[loss])
        ours, _ = load(saved(model, tmp_path / f"m.{suffix}"))
        assert ours.evaluate(np.ones((2, 4)), np.ones((2, 2)), verbose=0)[0] == pytest.approx(
            model.evaluate(np.ones((2, 4)), np.ones((2, 2)), verbose=0)[0]
        )

    def test_vocabularies(self, tmp_path):
        layer = keras.layers.StringLookup(vocabulary=["a", "b"])
        model = keras.Sequential([keras.Input((1,), dtype="string"), layer])
        with d.quiet():
            model.save(tmp_path / "m.keras")
        ours, _ = load(tmp_path / "m.keras")
        assert np.array_equal(ours(tf.constant([["b"], ["?"]])), model(tf.constant([["b"], ["?"]])))

    @pytest.mark.parametrize("suffix", ["h5", "keras"])
    def test_not_compiled(self, suffix, tmp_path):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        model.compile("adam", "mse")
        ours, _ = load(saved(model, tmp_path / f"m.{suffix}"), compile=False)
        assert not ours.compiled


OPTIMIZERS = {
    "sgd": ("SGD", {"momentum": 0.9}),
    "plain_sgd": ("SGD", {}),
    "adam": ("Adam", {}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "rmsprop": ("RMSprop", {"momentum": 0.5, "centered": True}),
    "adagrad": ("Adagrad", {}),
    "adadelta": ("Adadelta", {"learning_rate": 1.0}),
    "adamax": ("Adamax", {}),
    "ftrl": ("Ftrl", {}),
    "adamw": ("AdamW", {}),
    "lion": ("Lion", {}),
}


def trained(k, optimizer):
    k.utils.set_random_seed(1)
    model = k.Sequential([k.layers.Input((4,)), k.layers.Dense(5, activation="tanh"), k.layers.Dense(2)])
    model.compile(optimizer, "mean_squared_error")
    fit(model, 3)
    return model


def fit(model, epochs, *, traced=False):
    # Tracing a training step takes a second or two: one optimizer is enough.
    model.run_eagerly = not traced
    rng = np.random.default_rng(0)
    x, y = rng.random((8, 4)).astype("f4"), rng.random((8, 2)).astype("f4")
    return model.fit(x, y, epochs=epochs, batch_size=8, shuffle=False, verbose=0).history["loss"]


@pytest.mark.slow
class TestTrainingGoesOn:
    """The loss after loading is the same as without saving and loading."""

    @pytest.mark.parametrize("suffix", ["h5", "keras"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_of_keras_3(self, name, suffix, tmp_path):
        cls, arguments = OPTIMIZERS[name]
        model = trained(keras, getattr(keras.optimizers, cls)(**arguments))
        with d.quiet():
            model.save(tmp_path / f"m.{suffix}")
        ours, report = load(tmp_path / f"m.{suffix}")
        assert report.optimizer_left == ()
        assert int(ours.optimizer.iterations) == 3
        losses = [fit(each, 4, traced=name == "adam") for each in (ours, model)]
        np.testing.assert_allclose(*losses, rtol=1e-6)

    @pytest.mark.parametrize("library", ["keras", "tf_keras"])
    @pytest.mark.parametrize("generation", ["new", "legacy"])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_of_tf_keras(self, name, generation, library, tmp_path):
        cls, arguments = OPTIMIZERS[name]
        module = tf_keras.optimizers if generation == "new" else tf_keras.optimizers.legacy
        if not hasattr(module, cls):
            pytest.skip("there was no such optimizer then")
        if generation == "legacy" and library == "keras":
            arguments = {**arguments, "decay": 0.1}
        model = trained(tf_keras, getattr(module, cls)(**arguments))
        with d.quiet():
            model.save(tmp_path / "m.h5")
        ours, report = load(tmp_path / "m.h5", library)
        # Keras 3 has no slots for SGD without momentum.
        assert report.optimizer_left == () or (name, library) == ("plain_sgd", "keras")
        assert int(ours.optimizer.iterations) == 3
        losses = [fit(each, 4, traced=name == "adam") for each in (ours, model)]
        np.testing.assert_allclose(*losses, rtol=1e-4)

    def test_by_place_as_keras_2_wrote_it(self, tmp_path):
        """With stand-ins of one element in place of AMSGrad's slots."""
        model = trained(tf_keras, tf_keras.optimizers.legacy.Adam())
        with d.quiet():
            model.save(tmp_path / "m.h5")
        with h5py.File(tmp_path / "m.h5", "r+") as file:
            group = file["optimizer_weights"]
            names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
            values = [group[name][()] for name in names] + [np.zeros(1, "f4")] * 4
            del file["optimizer_weights"]
            group = file.create_group("optimizer_weights")
            new = ["Adam/iterations:0", *(f"training/Adam/Variable_{i}:0" for i in range(len(values) - 1))]
            for name, value in zip(new, values, strict=True):
                group[name] = value
            group.attrs["weight_names"] = [name.encode() for name in new]
            file.attrs["keras_version"] = "2.2.4"
        ours, report = load(tmp_path / "m.h5")
        assert len(report.optimizer_left) == 4
        np.testing.assert_allclose(fit(ours, 4), fit(model, 4), rtol=1e-4)


class TestBadInput:
    def plain(self, tmp_path):
        return saved(tf_keras.Sequential([L.Input((4,)), L.Dense(2)]), tmp_path / "m.h5")

    def with_config(self, tmp_path, text):
        path = self.plain(tmp_path)
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = text
        return path

    def test_weights_alone(self, tmp_path):
        path = d.saved(lambda: tf_keras.Sequential([L.Input((4,)), L.Dense(2)]), tmp_path / "w.h5")
        with pytest.raises(ValueError, match=r"No model config found in the file at .*w\.h5") as caught:
            load(path)
        assert "fastassign.load_weights" in caught.value.hint

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "none.h5")

    @pytest.mark.parametrize(
        "text", ["{", "3", "[]", '{"class_name": "Sequential"}', '{"class_name": 3, "config": {}}', "[" * 100_000]
    )
    def test_no_configuration(self, text, tmp_path):
        with pytest.raises(fa.Malformed, match="model_config") as caught:
            load(self.with_config(tmp_path, text))
        assert caught.value.file.endswith("m.h5")

    @pytest.mark.parametrize("library", ["keras", "tf_keras"])
    def test_a_circle(self, library, tmp_path):
        model = nested()
        path = saved(model, tmp_path / "c.h5")
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            layers = config["config"]["layers"]
            layers[1]["inbound_nodes"] = [[[layers[-1]["name"], 0, 0, {}]]]
            file.attrs["model_config"] = json.dumps(config)
        with pytest.raises(fa.Malformed, match="take inputs from each other"):
            load(path, library)

    @pytest.mark.parametrize("library", ["keras", "tf_keras"])
    def test_unknown_classes_are_all_named(self, library, tmp_path):
        path = self.plain(tmp_path)
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            for name in ("One", "Two"):
                config["config"]["layers"].append({"class_name": name, "config": {"name": name.lower(), "size": 3}})
            file.attrs["model_config"] = json.dumps(config)
        with pytest.raises(
            ValueError, match=r"Unknown layer: One \(one; arguments: size\); Two \(two; arguments: size\)"
        ) as caught:
            load(path, library)
        assert "custom_objects={'One': One, 'Two': Two}" in caught.value.hint

    @pytest.mark.parametrize("library", ["keras", "tf_keras"])
    def test_code_is_not_run(self, library, tmp_path):
        """Stock tf_keras runs it, even with safe_mode."""
        k = keras if library == "keras" else tf_keras
        model = k.Sequential([k.layers.Input((4,)), k.layers.Lambda(lambda x: x * 2)])
        with d.quiet():
            model.save(tmp_path / "m.h5")
            model.save(tmp_path / "m.keras")
        for name in ("m.h5", "m.keras"):
            with pytest.raises(fa.Refused, match="Python code is in the file"):
                load(tmp_path / name, library)
            ours, _ = load(tmp_path / name, library, safe_mode=False)
            assert np.array_equal(outputs_of(ours, [np.ones((1, 4), "f4")])[0], np.full((1, 4), 2.0))

    def test_an_unknown_loss(self, tmp_path):
        model = tf_keras.Sequential([L.Input((4,)), L.Dense(2)])
        model.compile("sgd", "mse")
        path = saved(model, tmp_path / "m.h5")
        with h5py.File(path, "r+") as file:
            training = json.loads(file.attrs["training_config"])
            file.attrs["training_config"] = json.dumps({**training, "loss": "mine"})
        with pytest.raises(ValueError, match="can't be compiled as it was") as caught:
            load(path)
        assert "compile=False" in caught.value.hint
        load(path, compile=False)

    @pytest.mark.parametrize("suffix", ["h5", "keras"])
    def test_a_file_that_is_replaced_meanwhile(self, suffix, tmp_path, monkeypatch):
        path, other = (
            saved(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), tmp_path / f"{name}.{suffix}", seed)
            for seed, name in enumerate("mn")
        )
        check = unknown.check_code

        def replace(config):
            other.replace(path)
            check(config)

        monkeypatch.setattr("fastassign.architecture.keras3.check_code", replace)
        with pytest.raises(fa.Changed, match="while its model was built"):
            load(path)

    def compiled(self, tmp_path, change):
        path = tmp_path / "m.h5"
        model = trained(tf_keras, "adam")
        with d.quiet():
            model.save(path)
        with h5py.File(path, "r+") as file:
            change(file, file["optimizer_weights"], file["optimizer_weights"].attrs["weight_names"])
        return path

    @pytest.mark.slow
    @pytest.mark.parametrize("library", ["keras", "tf_keras"])
    def test_optimizers_that_do_not_fit(self, library, tmp_path):
        def shape(_, group, names):
            del group[names[1]]
            group[names[1]] = np.zeros((7, 7), "f4")

        def lacking(_, group, names):
            del group[names[1]]

        def linked(file, *_):
            del file["optimizer_weights"]
            file["optimizer_weights"] = h5py.ExternalLink("/etc/passwd", "x")

        def nameless(file, *_):
            file.attrs["training_config"] = '{"loss": "mse"}'

        def unknown_class(file, *_):
            training = {
                **json.loads(file.attrs["training_config"]),
                "optimizer_config": {"class_name": "Mine", "config": {}},
            }
            file.attrs["training_config"] = json.dumps(training)

        for change, kind, text in (
            (shape, fa.Mismatch, r"the state of the optimizer does not fit: Adam/m/.* of shape \(7, 7\)"),
            (lacking, fa.Malformed, "of the optimizer, but has no dataset of that name"),
            (linked, fa.Refused, "."),
            (nameless, fa.Malformed, "training_config does not name an optimizer"),
            (unknown_class, fa.Mismatch, "Unknown optimizer: 'Mine'"),
        ):
            path = self.compiled(tmp_path, change)
            with pytest.raises(kind, match=text) as caught:
                load(path, library)
            assert caught.value.file == str(path)
            load(path, library, compile=False)

    def test_an_archive_cut_short(self, tmp_path):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        path = saved(model, tmp_path / "m.keras")
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises((fa.Malformed, fa.Truncated)):
            load(path)

    def test_an_archive_without_a_configuration(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
            archive.writestr("model.weights.h5", b"")
        with pytest.raises(fa.Malformed, match=r"no item named 'config\.json'"):
            load(tmp_path / "m.keras")

    def test_options(self):
        with pytest.raises(ValueError, match="library must be"):
            fa.LoadOptions(library="theano")

    def test_what_is_read_of_a_file(self, tmp_path):
        found = read_saved(self.plain(tmp_path))
        assert (found.format, found.config["class_name"], found.training) == ("hdf5", "Sequential", None)
        assert found.keras_version == tf_keras.__version__
