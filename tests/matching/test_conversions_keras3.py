"""Older layouts into Keras 3 models, which Keras 3 itself can't load: tf_keras' own loader is the oracle.

The same file goes by stock into a tf_keras model, and by fastassign into a Keras 3 model built alike; all variables are
compared bit for bit.

Rows are numbered as in docs/internals/keras.md, section 9.
"""

import os
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tf_keras
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM

import fastassign as fa
from support.differential import (
    assert_untouched,
    check,
    fill,
    fresh,
    our_load,
    perturb,
    quiet,
    save,
    snapshot,
    stock_load,
    twins,
    write_legacy,
)

K1, K2 = None, "2.2.4"
FIRST = {"data_format": "channels_first"}


def one(k, shape, make):
    """A model of one layer (named "l"), and a dense one whose weights stay as they are."""

    def build():
        inputs = k.Input(shape)
        x = k.layers.Flatten(name="flat")(make(k.layers)(inputs))
        return k.Model(inputs, k.layers.Dense(2, name="fc")(x), name="m")

    return build


def file_for(path, model, shapes, version, *, backend="tensorflow", name="w{}:0", seed=0):
    """A file with arrays of these shapes for layer "l", and fitting ones for "fc"."""
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    rest = [rng.normal(size=tuple(w.shape)).astype(np.float32) for w in model.get_layer("fc").weights]
    layers = [
        ("l", [("l/" + name.format(i), a) for i, a in enumerate(arrays)]),
        ("flat", []),
        ("fc", [(f"fc/w{i}:0", a) for i, a in enumerate(rest)]),
    ]
    write_legacy(path, layers, version=version, backend=backend if version else None)
    return arrays


def gates(count, inputs, units):
    return [(inputs, units), (units, units), (units,)] * count


def nested(*make, shape):
    return lambda L: module(L).Sequential([module(L).Input(shape), *(each(L) for each in make)], name="l")


def module(L):
    return keras if L is keras.layers else tf_keras


CUDNN_LSTM = [(4, 8), (2, 8), (16,)]
CUDNN_GRU = [(4, 6), (2, 6), (12,)]
PLAIN_GRU = {"reset_after": False}

# name: (input shape, layer, shapes in the file, version, variables that are converted)
CASES = {
    "conv1d": ((6, 2), lambda L: L.Conv1D(3, 4, name="l"), [(4, 1, 2, 3), (3,)], K1, 1),
    "conv1d_1.1": ((6, 2), lambda L: L.Conv1D(3, 4, name="l"), [(3, 2, 4, 1), (3,)], K1, 1),
    "conv1d_without_bias": ((6, 2), lambda L: L.Conv1D(3, 4, use_bias=False, name="l"), [(4, 1, 2, 3)], K1, 1),
    "conv2d_last": ((4, 4, 2), lambda L: L.Conv2D(3, 2, name="l"), [(2, 2, 2, 3), (3,)], K1, 0),
    "conv2d_first": ((2, 4, 4), lambda L: L.Conv2D(3, (2, 3), name="l", **FIRST), [(3, 2, 2, 3), (3,)], K1, 1),
    "conv2d_first_of_today": ((2, 4, 4), lambda L: L.Conv2D(3, (2, 3), name="l", **FIRST), [(2, 3, 2, 3), (3,)], K1, 0),
    "deconv_last": ((3, 3, 2), lambda L: L.Conv2DTranspose(3, 2, name="l"), [(2, 2, 2, 3), (3,)], K1, 1),
    "deconv_first": ((3, 4, 4), lambda L: L.Conv2DTranspose(3, 2, name="l", **FIRST), [(3, 3, 2, 2), (3,)], K1, 1),
    "conv3d_first": ((2, 3, 3, 3), lambda L: L.Conv3D(3, 2, name="l", **FIRST), [(3, 2, 2, 2, 2), (3,)], K1, 1),
    "conv3d_last": ((3, 3, 3, 2), lambda L: L.Conv3D(3, 2, name="l"), [(2, 2, 2, 2, 3), (3,)], K1, 0),
    "lstm": ((3, 4), lambda L: L.LSTM(2, name="l"), gates(4, 4, 2), K1, 3),
    "gru": ((3, 4), lambda L: L.GRU(2, name="l", **PLAIN_GRU), gates(3, 4, 2), K1, 3),
    "conv_lstm": ((2, 4, 4, 1), lambda L: L.ConvLSTM2D(2, 2, name="l"),
                  [(2, 2, 1, 2), (2, 2, 2, 2), (2,)] * 4, K1, 3),
    "bidirectional_lstm": ((3, 4), lambda L: L.Bidirectional(L.LSTM(2), name="l"), gates(8, 4, 2), K1, 6),
    "bidirectional_gru": ((3, 4), lambda L: L.Bidirectional(L.GRU(2, **PLAIN_GRU), name="l"), gates(6, 4, 2), K1, 6),
    "time_distributed_lstm": ((2, 3, 4), lambda L: L.TimeDistributed(L.LSTM(2), name="l"), gates(4, 4, 2), K1, 3),
    "time_distributed_conv2d": ((2, 2, 4, 4), lambda L: L.TimeDistributed(L.Conv2D(3, (2, 3), **FIRST), name="l"),
                                [(3, 2, 2, 3), (3,)], K1, 1),
    "nested_conv1d": ((6, 2), nested(lambda L: L.Conv1D(3, 4), lambda L: L.BatchNormalization(),
                                     lambda L: L.Conv1D(2, 1), shape=(6, 2)),
                      [(4, 1, 2, 3), (3,), (3,), (3,), (1, 1, 3, 2), (2,), (3,), (3,)], K1, 2),
    "cudnn_lstm": ((3, 4), lambda L: L.LSTM(2, name="l"), CUDNN_LSTM, K2, 3),
    "cudnn_gru": ((3, 4), lambda L: L.GRU(2, name="l"), CUDNN_GRU, K2, 3),
    "cudnn_lstm_without_version": ((3, 4), lambda L: L.LSTM(2, name="l"), CUDNN_LSTM, K1, 3),
    "bidirectional_cudnn_lstm": ((3, 4), lambda L: L.Bidirectional(L.LSTM(2), name="l"), CUDNN_LSTM * 2, K2, 6),
    "bidirectional_cudnn_gru": ((3, 4), lambda L: L.Bidirectional(L.GRU(2), name="l"), CUDNN_GRU * 2, K2, 6),
    "time_distributed_cudnn_gru": ((2, 3, 4), lambda L: L.TimeDistributed(L.GRU(2), name="l"), CUDNN_GRU, K2, 3),
    "time_distributed_cudnn_lstm": ((2, 3, 4), lambda L: L.TimeDistributed(L.LSTM(2), name="l"), CUDNN_LSTM, K2, 3),
    "nested_cudnn": ((3, 4), nested(lambda L: L.LSTM(2, return_sequences=True), lambda L: L.Dense(3),
                                    lambda L: L.Bidirectional(L.GRU(2)), shape=(3, 4)),
                     [*CUDNN_LSTM, (2, 3), (3,), *[(3, 6), (2, 6), (12,)] * 2], K2, 9),
    "time_distributed_nested": ((2, 3, 4), lambda L: L.TimeDistributed(module(L).Sequential(
        [module(L).Input((3, 4)), L.LSTM(2)]), name="l"), CUDNN_LSTM, K2, 3),
}  # fmt: skip

LOADS = {
    "by_order": fa.load_weights,
    "by_name": lambda model, path: fa.load_weights(model, path, by_name=True),
    "atomic": lambda model, path: fa.load_weights(model, path, atomic=True),
    "loader": lambda model, path: fa.Loader(model).load(path),
    "together": lambda model, path: fa.Loader(model, options=fa.LoadOptions(swap="together")).load(path),
}


def assert_same(stock, ours):
    """Two models of two libraries hold the same values."""
    assert len(stock.layers) == len(ours.layers)
    for a, b in zip(stock.layers, ours.layers, strict=True):
        found = [w.numpy() for w in b.trainable_weights + b.non_trainable_weights]
        wanted = [w.numpy() for w in a.trainable_weights + a.non_trainable_weights]
        assert [x.shape for x in found] == [y.shape for y in wanted]
        assert [x.tobytes() for x in found] == [y.tobytes() for y in wanted]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_like_tf_keras(name, tmp_path):  # rows 12 to 18, 22
    shape, make, shapes, version, converted = CASES[name]
    with quiet():
        stock, ours = fresh(one(tf_keras, shape, make)), fresh(one(keras, shape, make))
    path = tmp_path / "x.h5"
    file_for(path, stock, shapes, version)
    assert stock_load(stock, path).error is None
    total = sum(4 * int(np.prod(each.shape)) for each in h5_datasets(path))
    for load in LOADS.values():
        report = load(perturb(ours, 0.5), path)
        assert_same(stock, ours)
        assert (len(report.converted), report.routes.get("convert", 0)) == (converted, converted)
        assert (report.assigned, report.nbytes) == (len(ours.weights), total)
        assert not report.missing and not report.unexpected


def h5_datasets(path):
    found = []
    with h5py.File(path) as file:
        file.visititems(lambda _, each: found.append(each[()]) if isinstance(each, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize(("plain", "cudnn"), [("LSTM", CuDNNLSTM), ("GRU", CuDNNGRU)])
@pytest.mark.parametrize("wrapped", [False, True])
def test_cudnn_there_and_back(plain, cudnn, wrapped, tmp_path):  # row 18
    """Keras 3 to CuDNN's layer of tf_keras and back to Keras 3 gives the same values."""

    def wrap(k, layer):
        return k.layers.Bidirectional(layer, name="l") if wrapped else layer

    with quiet():
        ours, again = twins(one(keras, (3, 4), lambda L: wrap(keras, getattr(L, plain)(2, name="l"))))
        theirs, stock = twins(one(tf_keras, (3, 4), lambda _: wrap(tf_keras, cudnn(2, name="l"))))
        save(fill(ours, 3), tmp_path / "there.h5")
        assert stock_load(stock, tmp_path / "there.h5").error is None
        assert our_load(theirs, tmp_path / "there.h5").error is None
        assert_same(stock, theirs)
        save(theirs, tmp_path / "back.h5")
    assert our_load(perturb(again, 0.5), tmp_path / "back.h5").error is None
    assert_same(ours, again)


def test_kernels_of_the_names_of_keras_1(tmp_path):
    """A kernel that fits both ways: Keras 3 takes it as it is, but its name shows that it is one of Keras 1."""
    build = one(keras, (3, 4, 4), lambda L: L.Conv2D(3, 3, name="l", **FIRST))
    pair = twins(build)
    path = tmp_path / "x.h5"
    shapes = [(3, 3, 3, 3), (3,)]
    file_for(path, pair[0], shapes, K1, name="convolution2d_{}")
    check(pair, path)
    kernel = file_for(path, pair[0], shapes, K1, name="convolution2d_{}_W")[0]
    assert len(our_load(pair[1], path).result.converted) == 1
    assert np.array_equal(pair[1].get_layer("l").kernel, kernel.transpose(2, 3, 1, 0))
    with quiet():
        stock = fresh(one(tf_keras, (3, 4, 4), lambda L: L.Conv2D(3, 3, name="l", **FIRST)))
    assert stock_load(stock, path).error is None
    assert_same(stock, pair[1])


def together(arrays, order, transpose=None):
    """Return the arrays of Keras 1 for each gate, in the order of today: kernel, recurrent kernel, bias."""
    if transpose:
        arrays = [array.transpose(transpose) if array.ndim == len(transpose) else array for array in arrays]
    return [np.concatenate([arrays[3 * gate + part] for gate in order], axis=-1) for part in range(3)]


RIGHT = {
    # What tf_keras raises at, or converts wrongly: name: (input shape, layer, shapes in the file, right values).
    # Converted twice by tf_keras, as everything inside TimeDistributed (row 19).
    "time_distributed_conv1d": ((2, 6, 2), lambda L: L.TimeDistributed(L.Conv1D(3, 4, name="i"), name="l"),
                                [(4, 1, 2, 3), (3,)], lambda a: [a[0][:, 0], a[1]]),
    "time_distributed_cube": ((2, 3, 5, 5), lambda L: L.TimeDistributed(L.Conv2D(3, 3, name="i", **FIRST), name="l"),
                              [(3, 3, 3, 3), (3,)], lambda a: [a[0].transpose(2, 3, 1, 0), a[1]]),
    "time_distributed_deconv": ((2, 3, 3, 2), lambda L: L.TimeDistributed(L.Conv2DTranspose(3, 2, name="i"), name="l"),
                                [(2, 2, 2, 3), (3,)], lambda a: [a[0].transpose(0, 1, 3, 2), a[1]]),
    # In the order of today, in a file without a version.
    "conv1d_of_today": ((6, 2), lambda L: L.Conv1D(3, 4, name="l"), [(4, 2, 3), (3,)], lambda a: a),
    "deconv_of_today": ((3, 3, 2), lambda L: L.Conv2DTranspose(3, 2, name="l"), [(2, 2, 3, 2), (3,)], lambda a: a),
    "conv3d_of_today": ((2, 3, 3, 3), lambda L: L.Conv3D(3, 2, name="l", **FIRST), [(2, 2, 2, 2, 3), (3,)],
                        lambda a: a),
    # tf_keras puts the gates together along the columns.
    "conv_lstm_first": ((2, 1, 4, 4), lambda L: L.ConvLSTM2D(2, 2, name="l", **FIRST),
                        [(2, 1, 2, 2), (2, 2, 2, 2), (2,)] * 4, lambda a: together(a, (0, 2, 1, 3), (2, 3, 1, 0))),
    # tf_keras cuts a nested model's arrays by the counts of today.
    "nested_gates": ((3, 4), nested(lambda L: L.LSTM(2, return_sequences=True), lambda L: L.BatchNormalization(),
                                    lambda L: L.GRU(2, **PLAIN_GRU), shape=(3, 4)),
                     [*gates(4, 4, 2), (2,), (2,), *gates(3, 2, 2), (2,), (2,)],
                     lambda a: [*together(a[:12], (0, 2, 1, 3)), *a[12:14], *together(a[14:23], (0, 1, 2)), *a[23:]]),
}  # fmt: skip


@pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("name", sorted(RIGHT))
def test_right_where_stock_is_wrong(k, name, tmp_path):
    shape, make, shapes, right = RIGHT[name]
    stock, ours = twins(one(k, shape, make))
    path = tmp_path / "x.h5"
    wanted = right(file_for(path, stock, shapes, K1, name="a{}_W"))

    def holds(model):
        layer = model.get_layer("l")
        found = [weight.numpy() for weight in layer.trainable_weights + layer.non_trainable_weights]
        return all(map(np.array_equal, found, wanted))

    for by_name in (False, True):
        assert stock_load(stock, path, by_name=by_name).error or not holds(stock) or (k is keras and "today" in name)
        done = our_load(perturb(ours, 0.5), path, by_name=by_name)
        assert done.error is None
        assert bool(done.result.converted) == ("today" not in name)
        assert holds(ours)


WRONG = {
    "count": ((3, 4), lambda L: L.LSTM(2, name="l"), gates(3, 4, 2), K1),
    "count_of_a_newer_version": ((3, 4), lambda L: L.LSTM(2, name="l"), gates(4, 4, 2), K2),
    "units": ((3, 4), lambda L: L.LSTM(2, name="l"), gates(4, 4, 3), K1),
    "one_gate": ((3, 4), lambda L: L.LSTM(2, name="l"), [*gates(3, 4, 2), (4, 3), (2, 2), (2,)], K1),
    "scalars": ((3, 4), lambda L: L.LSTM(2, name="l"), [()] * 12, K1),
    "reset_after": ((3, 4), lambda L: L.GRU(2, name="l"), gates(3, 4, 2), K1),
    "cudnn_reset_before": ((3, 4), lambda L: L.GRU(2, name="l", **PLAIN_GRU), CUDNN_GRU, K2),
    "cudnn_kernel": ((3, 4), lambda L: L.LSTM(2, name="l"), [(5, 8), (2, 8), (16,)], K2),
    "cudnn_not_square": ((3, 4), lambda L: L.LSTM(2, name="l"), [(4, 8), (2, 7), (16,)], K2),
    "cudnn_no_matrix": ((3, 4), lambda L: L.LSTM(2, name="l"), [(8,), (2, 2, 4), (16,)], K2),
    "theanos_in_channels_last": ((5, 5, 2), lambda L: L.Conv2D(3, (2, 4), name="l"), [(3, 2, 2, 4), (3,)], K1),
    "undone": ((5, 5, 2), lambda L: L.Conv2D(3, (2, 4), name="l"), [(2, 3, 4, 2), (3,)], K2),
    "conv1d": ((6, 2), lambda L: L.Conv1D(3, 4, name="l"), [(4, 2, 2, 3), (3,)], K1),
    "conv1d_of_a_newer_version": ((6, 2), lambda L: L.Conv1D(3, 4, name="l"), [(4, 1, 2, 3), (3,)], K2),
    "conv3d": ((2, 3, 3, 3), lambda L: L.Conv3D(3, 2, name="l", **FIRST), [(3, 2, 2, 2), (3,)], K1),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_does_not_fit_raises_what_stock_raises(name, tmp_path):
    shape, make, shapes, version = WRONG[name]
    pair = twins(one(keras, shape, make))
    file_for(tmp_path / "x.h5", pair[0], shapes, version)
    for by_name in (False, True):
        assert check(pair, tmp_path / "x.h5", by_name=by_name).stock.error is not None
    check(pair, tmp_path / "x.h5", by_name=True, skip_mismatch=True)


def test_a_mismatch_beside_a_conversion_changes_nothing(tmp_path):
    pair = twins(one(keras, (3, 4), lambda L: L.LSTM(2, name="l")))
    file_for(tmp_path / "x.h5", pair[0], CUDNN_LSTM, K2)
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        del file["fc/fc/w1:0"]
        file["fc/fc/w1:0"] = np.zeros(9, np.float32)
    before = snapshot(perturb(pair[1], 0.5))
    assert isinstance(our_load(pair[1], tmp_path / "x.h5").error, fa.Mismatch)
    assert_untouched(pair[1], before)


# Theano's convolution turns kernels round.


def true_convolution(images, kernel):
    """As Theano does it: sum of x[i - k] w[k], where TensorFlow sums x[i + k] w[k]."""
    rows, columns, _, filters = kernel.shape
    height, width = images.shape[1] - rows + 1, images.shape[2] - columns + 1
    out = np.zeros((len(images), height, width, filters))
    for y in range(height):
        for x in range(width):
            for r in range(rows):
                for c in range(columns):
                    pixel = images[:, y + rows - 1 - r, x + columns - 1 - c, :]
                    out[:, y, x, :] += pixel @ kernel[r, c]
    return out


@pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_flipped_kernels_convolve(k, tmp_path):
    with quiet():
        model = fresh(one(k, (5, 6, 2), lambda L: L.Conv2D(3, (2, 3), name="l")))
    path = tmp_path / "x.h5"
    kernel, bias = file_for(path, model, [(2, 3, 2, 3), (3,)], K2, backend="theano")
    fa.load_weights(model, path, options=fa.LoadOptions(conv_flip=False))
    assert np.array_equal(model.get_layer("l").weights[0].numpy(), kernel)
    report = fa.load_weights(model, path)
    assert report.converted == (f"{model.get_layer('l').weights[0].path if k is keras else 'l/kernel:0'}: flip",)
    images = np.random.default_rng(1).normal(size=(2, 5, 6, 2)).astype(np.float32)
    found = np.asarray(model.get_layer("l")(images)) - bias
    np.testing.assert_allclose(found, true_convolution(images, kernel), rtol=1e-5, atol=1e-5)
    report = fa.load_weights(model, path, options=fa.LoadOptions(conv_flip=False))
    assert np.array_equal(model.get_layer("l").weights[0].numpy(), kernel)
    assert not report.converted


FLIPPED = {
    "conv1d": (CASES["conv1d"], [lambda a: a[0][::-1, 0]]),
    "conv2d_first": (CASES["conv2d_first"], [lambda a: a[0].transpose(2, 3, 1, 0)[::-1, ::-1]]),
    "deconv_last": (CASES["deconv_last"], [lambda a: a[0].transpose(0, 1, 3, 2)[::-1, ::-1]]),
    "conv3d_last": (CASES["conv3d_last"], [lambda a: a[0][::-1, ::-1, ::-1]]),
    "conv_lstm": (CASES["conv_lstm"], [
        lambda a: np.concatenate(a[0::3][:1] + a[6:7] + a[3:4] + a[9:10], -1)[::-1, ::-1],
        lambda a: np.concatenate(a[1:2] + a[7:8] + a[4:5] + a[10:11], -1)[::-1, ::-1]]),
    "nested_conv1d": (CASES["nested_conv1d"], [lambda a: a[0][::-1, 0]]),
}  # fmt: skip


@pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("name", sorted(FLIPPED))
def test_flip_after_other_conversions(k, name, tmp_path):
    (shape, make, shapes, version, _), wanted = FLIPPED[name]
    with quiet():
        model = fresh(one(k, shape, make))
    arrays = file_for(tmp_path / "x.h5", model, shapes, version)
    fa.load_weights(model, tmp_path / "x.h5", options=fa.LoadOptions(conv_flip=True))
    for weight, right in zip(model.get_layer("l").weights, wanted, strict=False):
        assert np.array_equal(weight.numpy(), right(arrays))


def test_theanos_kernels_that_keras_3_could_not_load_are_flipped(tmp_path):
    """One attribute of the group is missing: the backend tells the conversion, the shape tells that one is needed."""
    shape, make, shapes, _, _ = CASES["conv2d_first"]
    with quiet():
        model, stock = fresh(one(keras, shape, make)), fresh(one(tf_keras, shape, make))
    path = tmp_path / "x.h5"
    kernel = file_for(path, model, shapes, K1)[0]
    with h5py.File(path, "r+") as file:
        file.attrs["backend"] = b"theano"
    for each in (model, stock):
        fa.load_weights(each, path)
        found = each.get_layer("l").weights[0].numpy()
        assert np.array_equal(found, kernel.transpose(2, 3, 1, 0)[::-1, ::-1])
        fa.load_weights(each, path, options=fa.LoadOptions(conv_flip=False))
        assert np.array_equal(each.get_layer("l").weights[0].numpy(), kernel.transpose(2, 3, 1, 0))


# Another shape of the same size.


@pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("by_name", [False, True])
def test_reshape(k, by_name, tmp_path):
    def make(filters, units):
        def build():
            inputs = k.Input((5, 5, 2))
            x = k.layers.Flatten(name="flat")(k.layers.Conv2D(*filters, name="l")(inputs))
            return k.Model(inputs, k.layers.Dense(units, name="fc")(x), name="m")

        return build

    with quiet():
        source = fill(fresh(make((3, (2, 4)), 2)), 1)
        target, twin = twins(make((3, (4, 2)), 2))
        save(source, tmp_path / "x.h5")
    before = snapshot(perturb(target, 0.5))
    assert isinstance(our_load(target, tmp_path / "x.h5", by_name=by_name).error, ValueError)
    assert_untouched(target, before)
    options = fa.LoadOptions(reshape=True)
    plan = fa.plan(target, tmp_path / "x.h5", by_name=by_name, options=options)
    assert "convert (reshape (4, 2, 2, 3))" in str(plan)
    report = plan.execute()
    assert report.routes["convert"] == 1
    for a, b in zip(source.weights, target.weights, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()
    with quiet():
        other = fresh(make((4, (4, 2)), 2))  # another size
    before = snapshot(perturb(other, 0.5))
    assert isinstance(our_load(other, tmp_path / "x.h5", by_name=by_name, options=options).error, ValueError)
    assert_untouched(other, before)
    if not by_name:
        with quiet():
            save(source, tmp_path / "x.weights.h5")
        assert fa.load_weights(twin, tmp_path / "x.weights.h5", options=options).routes["convert"] == 1
        assert twin.weights[0].numpy().tobytes() == source.weights[0].numpy().tobytes()


# Memory, dtypes, the plan.


@pytest.mark.slow
def test_one_variable_at_a_time(tmp_path):
    """Ten layers in CuDNN's layout are loaded with memory for one."""
    units, count = 80, 10

    def build(k):
        layers = [k.layers.LSTM(units, return_sequences=True, name=f"l{i}") for i in range(count)]
        return k.Sequential([k.Input((3, units)), *layers])

    with quiet():
        stock, ours = fresh(lambda: build(tf_keras)), fresh(lambda: build(keras))
    rng = np.random.default_rng(0)
    shapes = [(units, 4 * units), (units, 4 * units), (8 * units,)]
    layers = [
        (f"l{i}", [(f"l{i}/{j}", rng.normal(size=s).astype("f4")) for j, s in enumerate(shapes)]) for i in range(count)
    ]
    path = write_legacy(tmp_path / "x.h5", layers, version=K2)
    stock.load_weights(str(path))
    kernel = 4 * units * 4 * units
    plan = fa.plan(ours, path)
    assert plan.staging_bytes == 2 * kernel + kernel // 4
    assert plan.nbytes == count * (2 * kernel + 4 * 8 * units)
    whole = fa.plan(ours, path, atomic=True)
    assert whole.staging_bytes == count * (2 * kernel + 4 * 4 * units) + kernel + kernel // 4
    with pytest.raises(fa.Budget, match="converted"):
        fa.plan(ours, path, options=fa.LoadOptions(max_staging_bytes=plan.staging_bytes - 1))
    report = fa.load_weights(ours, path, options=fa.LoadOptions(max_staging_bytes=plan.staging_bytes))
    assert report.assigned == 3 * count
    assert_same(stock, ours)


@pytest.mark.parametrize("dtype", ["<f2", "<f8", ">f4"])
@pytest.mark.parametrize("name", ["lstm", "cudnn_lstm", "cudnn_gru", "conv2d_first"])
def test_dtypes(name, dtype, tmp_path):
    """Arithmetic is done in the dtype of the file, the cast comes last."""
    shape, make, shapes, version, _ = CASES[name]
    with quiet():
        stock, ours = fresh(one(tf_keras, shape, make)), fresh(one(keras, shape, make))
    path = tmp_path / "x.h5"
    file_for(path, stock, shapes, version)
    with h5py.File(path, "r+") as file:
        for key in [f"l/l/w{i}:0" for i in range(len(shapes))]:
            values = file[key][()]
            del file[key]
            file[key] = values.astype(dtype)
    stock.load_weights(str(path))
    report = fa.load_weights(ours, path)
    assert_same(stock, ours)
    assert len(report.cast) >= len(report.converted) > 0


def test_bfloat16(tmp_path):
    """Opaque bytes get the dtype of the variable before anything is computed from them."""
    with quiet():
        model = fresh(
            one(keras, (3, 4), lambda L: L.LSTM(2, dtype="bfloat16", recurrent_initializer="zeros", name="l"))
        )
        plain = fresh(one(keras, (3, 4), lambda L: L.LSTM(2, name="l")))
    bfloat16 = model.get_layer("l").weights[0].numpy().dtype
    path = tmp_path / "x.h5"
    file_for(path, model, CUDNN_LSTM, K2)
    with h5py.File(path, "r+") as file:
        for key in [f"l/l/w{i}:0" for i in range(3)]:
            values = file[key][()].astype(bfloat16)
            del file[key]
            file[key] = values.view("V2")
    fa.load_weights(model, path)
    with h5py.File(path, "r+") as file:
        for key in [f"l/l/w{i}:0" for i in range(3)]:
            values = file[key][()].view(bfloat16)
            del file[key]
            file[key] = values.astype(np.float32)
    fa.load_weights(plain, path)
    for a, b in zip(model.get_layer("l").weights, plain.get_layer("l").weights, strict=True):
        assert np.array_equal(a.numpy(), b.numpy().astype(bfloat16))


def test_plan_and_report_say_it(tmp_path):
    shape, make, shapes, version, _ = CASES["bidirectional_lstm"]
    with quiet():
        model = fresh(one(keras, shape, make))
    file_for(tmp_path / "x.h5", model, shapes, version)
    plan = fa.plan(model, tmp_path / "x.h5")
    rows = [row for row in plan.to_dict()["tensors"] if row["route"].startswith("convert")]
    assert len(rows) == 6
    assert rows[0]["route"] == "convert (concatenate 4 gates)"
    assert rows[0]["record"] == "l/l/w0:0, l/l/w6:0, l/l/w3:0, l/l/w9:0"
    assert rows[0]["shape"] == str((4, 8))
    events = []
    report = plan.execute(events.append)
    assert "concatenate 4 gates" in str(report)
    assert events[-1].done_variables == events[-1].total_variables == len(model.weights)
    assert events[-1].done_bytes == events[-1].total_bytes == report.nbytes


def test_betago(tmp_path):
    """A file of Keras 1 with Theano's order, from the corpus."""
    corpus = os.environ.get("FASTASSIGN_CORPUS")
    if not corpus:
        pytest.skip("FASTASSIGN_CORPUS is not set")
    path = tmp_path / "betago.h5"
    path.symlink_to(Path(corpus) / "betago__one_epoch_cnn_weights.hd5")

    def build(k):
        layers = [
            k.layers.Conv2D(32, 3, padding="same", **FIRST),
            k.layers.Conv2D(32, 3, **FIRST),
            k.layers.MaxPooling2D(2, **FIRST),
            k.layers.Flatten(),
            k.layers.Dense(128),
            k.layers.Dense(361),
        ]
        return k.Sequential([k.Input((7, 17, 17)), *layers])

    with quiet():
        stock, ours = fresh(lambda: build(tf_keras)), fresh(lambda: build(keras))
    stock.load_weights(str(path))
    report = fa.load_weights(ours, path)
    assert_same(stock, ours)
    assert len(report.converted) == 2
