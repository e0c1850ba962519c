"""Models of one layer, and files of them in the layouts of Keras 1, Theano and CuDNN."""

import numpy as np
import tf_keras
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM

from support.differential import write_legacy

L = tf_keras.layers


def single(shape, make):
    """A model of one layer (named "l"), and a dense one whose weights stay as they are."""

    def build():
        inputs = tf_keras.Input(shape)
        x = L.Flatten(name="flat")(make()(inputs))
        return tf_keras.Model(inputs, L.Dense(2, name="fc")(x), name="m")

    return build


def file_for(path, model, arrays, version=None):
    """A file with these arrays for layer "l", and fitting ones for "fc"."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in arrays]
    rest = [rng.normal(size=tuple(w.shape)).astype(np.float32) for w in model.get_layer("fc").weights]
    layers = [("l", [(f"l/w{i}:0", a) for i, a in enumerate(arrays)]), ("flat", []),
              ("fc", [(f"fc/w{i}:0", a) for i, a in enumerate(rest)])]  # fmt: skip
    return write_legacy(path, layers, version=version, backend="tensorflow" if version else None)


def gates(count, inputs, units):
    """Keras 1 wrote kernel, recurrent kernel and bias of each gate apart."""
    return [(inputs, units), (units, units), (units,)] * count


def conv_gates(channels, filters, *, first=False):
    kernel, recurrent = (2, 2, channels, filters), (2, 2, filters, filters)
    if first:
        kernel, recurrent = (filters, channels, 2, 2), (filters, filters, 2, 2)
    return [kernel, recurrent, (filters,)] * 4


CASES = {
    # name: (input shape, layer, arrays of the file, version; does stock load it?)
    "conv1d": ((6, 2), lambda: L.Conv1D(3, 4, name="l"), [(4, 1, 2, 3), (3,)], None, True),
    "conv1d_1.1": ((6, 2), lambda: L.Conv1D(3, 4, name="l"), [(3, 2, 4, 1), (3,)], None, True),
    "conv2d_tf": ((4, 4, 2), lambda: L.Conv2D(3, 2, name="l"), [(2, 2, 2, 3), (3,)], None, True),
    "conv2d_theano_last": ((4, 4, 2), lambda: L.Conv2D(3, (2, 3), name="l"), [(3, 2, 2, 3), (3,)], None, None),
    "conv2d_theano_first": ((2, 4, 4), lambda: L.Conv2D(3, (2, 3), data_format="channels_first", name="l"),
                            [(3, 2, 2, 3), (3,)], None, True),
    "conv2d_k2_mismatch": ((5, 5, 2), lambda: L.Conv2D(3, (2, 4), name="l"), [(2, 3, 4, 2), (3,)], "2.2.0", None),
    "conv2d_k2_transposed": ((5, 5, 2), lambda: L.Conv2D(3, (2, 4), name="l"), [(4, 3, 2, 2), (3,)], "2.2.0", None),
    "conv2d_k2_fits_after": ((5, 5, 2), lambda: L.Conv2D(3, (2, 4), name="l"), [(2, 3, 4, 2), (3,)], "2.2.0", None),
    "conv2d_transpose_last": ((3, 3, 2), lambda: L.Conv2DTranspose(3, 2, name="l"), [(2, 2, 2, 3), (3,)], None, True),
    "conv2d_transpose_first": ((2, 3, 3), lambda: L.Conv2DTranspose(3, 2, data_format="channels_first", name="l"),
                               [(2, 3, 2, 2), (3,)], None, None),
    "conv3d_first": ((2, 3, 3, 3), lambda: L.Conv3D(3, 2, data_format="channels_first", name="l"),
                     [(3, 2, 2, 2, 2), (3,)], None, True),
    "conv3d_last": ((3, 3, 3, 2), lambda: L.Conv3D(3, 2, name="l"), [(2, 2, 2, 2, 3), (3,)], None, True),
    "conv3d_mismatch": ((3, 3, 3, 2), lambda: L.Conv3D(3, 2, name="l"), [(3, 2, 2, 2, 2), (3,)], "2.1.0", False),
    "lstm": ((3, 4), lambda: L.LSTM(2, name="l"), gates(4, 4, 2), None, True),
    "gru": ((3, 4), lambda: L.GRU(2, reset_after=False, name="l"), gates(3, 4, 2), None, True),
    "gru_reset_after": ((3, 4), lambda: L.GRU(2, name="l"), gates(3, 4, 2), None, False),
    "conv_lstm": ((2, 4, 4, 1), lambda: L.ConvLSTM2D(2, 2, name="l"), conv_gates(1, 2), None, True),
    "bidirectional": ((3, 4), lambda: L.Bidirectional(L.LSTM(2, name="i"), name="l"), gates(8, 4, 2), None, True),
    "time_distributed_dense": ((3, 4), lambda: L.TimeDistributed(L.Dense(2, name="i"), name="l"),
                               [(4, 2), (2,)], None, True),
    "cudnn_lstm": ((3, 4), lambda: L.LSTM(2, name="l"), [(4, 8), (2, 8), (16,)], "2.2.0", True),
    "cudnn_gru": ((3, 4), lambda: L.GRU(2, name="l"), [(4, 6), (2, 6), (12,)], "2.2.0", True),
    "cudnn_gru_reset_before": ((3, 4), lambda: L.GRU(2, reset_after=False, name="l"),
                               [(4, 6), (2, 6), (12,)], "2.2.0", False),
    "gru_other_reset": ((3, 4), lambda: L.GRU(2, name="l"), [(4, 6), (2, 6), (6,)], "2.2.0", False),
    "gru_other_reset_back": ((3, 4), lambda: L.GRU(2, reset_after=False, name="l"),
                             [(4, 6), (2, 6), (2, 6)], "2.2.0", False),
    "lstm_bad_bias": ((3, 4), lambda: L.LSTM(2, name="l"), [(4, 8), (2, 8), (7,)], "2.2.0", False),
    "cudnn_bidirectional": ((3, 4), lambda: L.Bidirectional(L.LSTM(2, name="i"), name="l"),
                            [(4, 8), (2, 8), (16,)] * 2, "2.2.0", True),
    "lstm_to_cudnn": ((3, 4), lambda: CuDNNLSTM(2, name="l"), [(4, 8), (2, 8), (8,)], "2.2.0", True),
    "gru_to_cudnn": ((3, 4), lambda: CuDNNGRU(2, name="l"), [(4, 6), (2, 6), (2, 6)], "2.2.0", True),
    "time_distributed_lstm": ((2, 3, 4), lambda: L.TimeDistributed(L.LSTM(2, name="i"), name="l"),
                              [(4, 8), (2, 8), (16,)], "2.2.0", True),
    "nested_conv1d": ((6, 2), lambda: tf_keras.Sequential(
        [tf_keras.Input((6, 2)), L.Conv1D(3, 4, name="c"), L.Conv1D(2, 1, name="e")], name="l"),
        [(4, 1, 2, 3), (3,), (1, 1, 3, 2), (2,)], None, True),
    "nested_lstm": ((3, 4), lambda: tf_keras.Sequential(
        [tf_keras.Input((3, 4)), L.LSTM(2, return_sequences=True, name="c"), L.LSTM(2, name="e")], name="l"),
        [(4, 8), (2, 8), (16,), (2, 8), (2, 8), (16,)], "2.2.0", True),
}  # fmt: skip
