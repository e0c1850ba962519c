"""Recurrent layers as Keras 1 and CuDNN stored them.

Keras 1 wrote kernel, recurrent kernel and bias of each gate as arrays of their own; CuDNN's layers keep the transposed
kernels and two biases. Sources: ``preprocess_weights_for_loading`` and ``_convert_rnn_weights`` in ``hdf5_format.py``
of tf_keras and in ``keras/engine/saving.py`` of Keras 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from fastassign.catalog.records import TensorRecord
from fastassign.matching.conversions import recipes
from fastassign.matching.conversions.recipes import Recipe

# Gates of Keras 1 in the order of today. An LSTM wrote i, c, f, o and now has i, f, c, o; a GRU wrote z, r, h as now.
_KERAS_1_GATES = {"LSTM": (0, 2, 1, 3), "ConvLSTM2D": (0, 2, 1, 3), "GRU": (0, 1, 2)}

# Kernel, recurrent kernel, bias.
_ARRAYS = 3

_GATES = {"LSTM": 4, "CuDNNLSTM": 4, "GRU": 3, "CuDNNGRU": 3}

# Columns that are transposed at a time.
_STRIP = 64

_Array = np.ndarray[Any, Any]


def keras_1_count(kind: str, count: int) -> int:
    """Return how many arrays Keras 1 wrote for a layer that has ``count`` now."""
    gates = _KERAS_1_GATES.get(kind)
    return _ARRAYS * len(gates) if gates is not None and count == _ARRAYS else count


def from_gates(kind: str, records: Sequence[TensorRecord], data_format: str) -> list[Recipe] | None:
    """Join the arrays that Keras 1 wrote for each gate; ``None`` if their shapes do not allow it."""
    gates = _KERAS_1_GATES[kind]
    # Kernels in Theano's order (filters, channels, rows, columns) have their filters first. tf_keras joins them along
    # the columns, which does not fit.
    is_theanos = kind == "ConvLSTM2D" and data_format == "channels_first"
    results = []
    for part in range(_ARRAYS):
        of_gates = [records[_ARRAYS * gate + part] for gate in gates]
        transposes = is_theanos and len(of_gates[0].shape) == 4
        result = recipes.concatenated(of_gates, 0 if transposes else -1, f"concatenate {len(gates)} gates")
        if result is None:
            return None
        results.append(result.transposed(2, 3, 1, 0) if transposes else result)
    return results


def from_other_implementation(
    kind: str, records: Sequence[TensorRecord], wanted: Sequence[tuple[int, ...]]
) -> list[Recipe] | None:
    """Convert between a plain layer and CuDNN's; ``None`` if the biases are not those of one of each kind.

    Parameters
    ----------
    kind : str
        The class of the layer to load.
    records : sequence of TensorRecord
        Kernel, recurrent kernel and bias.
    wanted : sequence of tuple of int
        The shapes of the layer's own weights.
    """
    if len(records) != _ARRAYS or len(wanted) != _ARRAYS or any(not record.shape for record in records):
        return None
    kernel, recurrent, bias = records
    gates, units = _GATES[kind], recurrent.shape[0]
    pair = (bias.shape, wanted[2])
    single, double = (gates * units,), (2 * gates * units,)
    plain = single if gates == _GATES["LSTM"] else (2, gates * units)
    if pair not in {(double, plain), (plain, double)}:
        return None
    if any(len(record.shape) != 2 or record.shape[1] % gates for record in (kernel, recurrent)):
        return None
    from_cudnn = bias.shape == double
    where = "from CuDNN" if from_cudnn else "to CuDNN"
    return [
        recipes.filled(
            kernel,
            kernel.shape,
            f"{gates} kernels {where}",
            partial(_input_kernels, gates=gates, order="F" if from_cudnn else "C"),
            kernel.nbytes // gates,
        ),
        recipes.filled(
            recurrent,
            (recurrent.shape[1] // gates, gates * units),
            f"transpose {gates} kernels",
            partial(_recurrent_kernels, gates=gates),
        ),
        _bias(bias, wanted[2], from_cudnn=from_cudnn, is_lstm=gates == _GATES["LSTM"]),
    ]


def _bias(bias: TensorRecord, shape: tuple[int, ...], *, from_cudnn: bool, is_lstm: bool) -> Recipe:
    if not is_lstm:
        return recipes.stored(bias).reshaped(shape)
    if from_cudnn:
        return recipes.computed(bias, shape, "add the two biases", _sum_of_halves, bias.nbytes)
    # Any two biases with this sum would do; Keras takes these.
    return recipes.computed(bias, shape, "half of the bias twice", _halves, 3 * bias.nbytes)


def _sum_of_halves(bias: _Array) -> Any:
    return np.sum(np.split(bias, 2), axis=0)


def _halves(bias: _Array) -> Any:
    return np.tile(0.5 * bias, 2)


def _input_kernels(out: _Array, arrays: Sequence[_Array], *, gates: int, order: Literal["C", "F"]) -> None:
    """Each gate's kernel keeps its shape, but its values run along the other axis."""
    width = arrays[0].shape[1] // gates
    for gate in range(gates):
        part = slice(gate * width, (gate + 1) * width)
        kernel = arrays[0][:, part]
        _put_transposed(out[:, part], kernel.T.reshape(kernel.shape, order=order))


def _recurrent_kernels(out: _Array, arrays: Sequence[_Array], *, gates: int) -> None:
    height, width = arrays[0].shape[0], arrays[0].shape[1] // gates
    for gate in range(gates):
        kernel = arrays[0][:, gate * width : (gate + 1) * width]
        _put_transposed(out[:, gate * height : (gate + 1) * height], kernel.T)


def _put_transposed(out: _Array, values: _Array) -> None:
    """Copy values whose memory runs along the other axis."""
    # The lines of a strip stay in the cache: 27 ms instead of 53 ms for a kernel of 1024 by 4096.
    for start in range(0, out.shape[1], _STRIP):
        strip = slice(start, start + _STRIP)
        np.copyto(out[:, strip], values[:, strip], casting="unsafe")
