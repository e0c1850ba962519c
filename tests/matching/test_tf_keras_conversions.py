"""Weights of Keras 1, Theano and CuDNN in tf_keras, which rewrites them as it loads: stock is the oracle.

The files are written by hand, in the layouts of ``preprocess_weights_for_loading`` (docs/internals/keras.md,
section 2).

Rows are numbered as in docs/internals/keras.md, section 9.
"""

import h5py
import numpy as np
import pytest
import tf_keras
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM

from support.differential import check, differences, perturb, saved, snapshot, twins
from support.old_layouts import CASES, file_for, gates, single

L = tf_keras.layers


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_conversion(name, tmp_path):  # rows 12 to 18, 20
    shape, make, arrays, version, loads = CASES[name]
    pair = twins(single(shape, make))
    path = file_for(tmp_path / "x.h5", pair[0], arrays, version)
    for by_name in (False, True):
        before = snapshot(perturb(pair[1], 0.75))
        done = check(pair, path, by_name=by_name)
        assert loads is None or (done.stock.error is None) == loads, repr(done.stock.error)
        if done.stock.error is None:
            # Nothing is left as it was: stock's conversions reach every variable.
            assert {w.name for w in pair[1].weights} <= set(differences(snapshot(pair[1]), before))


def test_theano_kernels_in_channels_last(tmp_path):  # row 14
    build = single((5, 5, 2), lambda: L.Conv2D(3, (2, 4), name="l"))
    pair = twins(build)
    path = file_for(tmp_path / "x.h5", pair[0], [(3, 2, 2, 4), (3,)])
    check(pair, path)


@pytest.mark.parametrize("convert", [False, True])
def test_conversion_beside_a_mismatch(convert, tmp_path):
    """A layer that would be converted, and a later one that does not fit: nothing changes."""
    build = single((3, 4), lambda: L.LSTM(2, name="l"))
    pair = twins(build)
    path = file_for(tmp_path / "x.h5", pair[0], gates(4, 4, 2) if convert else [(4, 8), (2, 8), (8,)])
    with h5py.File(path, "r+") as file:
        del file["fc/fc/w1:0"]
        file["fc/fc/w1:0"] = np.zeros(9, np.float32)
    check(pair, path)


@pytest.mark.parametrize("name", ["conv2d_k2_transposed", "conv2d_theano_last", "conv2d_transpose_first", "lstm"])
def test_conversion_that_does_not_fit_is_skipped(name, tmp_path):
    shape, make, arrays, version, _ = CASES[name]
    if name == "lstm":  # converted, all of it, and none of it fits
        make, arrays = (lambda: L.LSTM(3, name="l")), gates(4, 5, 2)
    pair = twins(single(shape, make))
    path = file_for(tmp_path / "x.h5", pair[0], arrays, version)
    done = check(pair, path, by_name=True, skip_mismatch=True)
    assert done.report.skipped and done.report.assigned == (2 if name == "lstm" else 3)


CUDNN = {
    "lstm": (L.LSTM, CuDNNLSTM, {}),
    "gru": (L.GRU, CuDNNGRU, {"reset_after": True}),
}


@pytest.mark.parametrize("kind", sorted(CUDNN))
def test_there_and_back(kind, tmp_path):  # row 18
    """Files that tf_keras itself saved, of the one kind, into the other."""
    plain, cudnn, options = CUDNN[kind]
    builds = {
        "plain": twins(single((3, 4), lambda: plain(2, name="l", **options))),
        "cudnn": twins(single((3, 4), lambda: cudnn(2, name="l"))),
    }
    for saving, source in builds.items():
        for loading, target in builds.items():
            path = saved(source, tmp_path / f"{saving}{loading}.h5")
            assert check(target, path).stock.error is None
