"""Configurations of Keras 1, translated to those of Keras 2.

Keras 2 understood them through decorators on its constructors (``keras/legacy/interfaces.py``, to 2.3); the
``get_config`` methods of Keras 1.2 show what each layer wrote.
"""

from __future__ import annotations

from typing import Any

from fastassign.architecture.saved import Node
from fastassign.errors import Unsupported

_CLASSES = {
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D",
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "Deconvolution2D": "Conv2DTranspose",
    "SeparableConvolution2D": "SeparableConv2D",
}
_MERGES = {"sum": "Add", "mul": "Multiply", "ave": "Average", "max": "Maximum", "concat": "Concatenate"}
_ORDERS = {"th": "channels_first", "tf": "channels_last"}
_INITIALIZERS = {"normal": "random_normal", "uniform": "random_uniform", "zero": "zeros", "one": "ones"}

# Arguments that later versions do not have, or that mean the same in every layer.
_ARGUMENTS = {
    "bias": "use_bias",
    "border_mode": "padding",
    "nb_filter": "filters",
    "filter_length": "kernel_size",
    "subsample": "strides",
    "subsample_length": "strides",
    "atrous_rate": "dilation_rate",
    "pool_length": "pool_size",
    "stride": "strides",
    "init": "kernel_initializer",
    "inner_init": "recurrent_initializer",
    "inner_activation": "recurrent_activation",
    "W_regularizer": "kernel_regularizer",
    "U_regularizer": "recurrent_regularizer",
    "b_regularizer": "bias_regularizer",
    "W_constraint": "kernel_constraint",
    "b_constraint": "bias_constraint",
    "dropout_W": "dropout",
    "dropout_U": "recurrent_dropout",
}
# Arguments whose meaning depends on the layer, by layer.
_OF_LAYERS = {
    "InputLayer": {"input_dtype": "dtype"},
    "Embedding": {"init": "embeddings_initializer", "W_regularizer": "embeddings_regularizer",
                  "W_constraint": "embeddings_constraint"},
    "BatchNormalization": {"init": "gamma_initializer"},
    "Dropout": {"p": "rate"},
    "SpatialDropout1D": {"p": "rate"},
    "SpatialDropout2D": {"p": "rate"},
    "SpatialDropout3D": {"p": "rate"},
    "GaussianDropout": {"p": "rate"},
    "GaussianNoise": {"sigma": "stddev"},
    "UpSampling1D": {"length": "size"},
    "Dense": {"output_dim": "units"},
    "SimpleRNN": {"output_dim": "units"},
    "GRU": {"output_dim": "units"},
    "LSTM": {"output_dim": "units"},
}  # fmt: skip
# Arguments that changed how a layer computes, not the result.
_DROPPED = ("consume_less", "input_length", "input_dtype")


def keras_1(node: Node) -> bool:
    """Keras 1: other names of classes, arguments and initializers."""
    config = node["config"]
    if not isinstance(config, dict):
        return False
    before, name = dict(config), node["class_name"]
    node["class_name"] = _CLASSES.get(name, name)
    if name == "Merge":
        _merge(node)
    _kernel_size(config)
    if "dim_ordering" in config:
        config["data_format"] = _ORDERS.get(config.pop("dim_ordering"), "channels_last")
    if "forget_bias_init" in config:
        config["unit_forget_bias"] = config.pop("forget_bias_init") == "one"
    if name == "BatchNormalization" and config.pop("mode", 0) == 1:
        raise Unsupported(
            f"layer {config.get('name')} is a BatchNormalization of mode 1, which later versions do not have"
        )
    if name == "Embedding" and config.pop("dropout", None):
        raise Unsupported(f"layer {config.get('name')} is an Embedding with dropout, which later versions do not have")
    names = {**_ARGUMENTS, **_OF_LAYERS.get(node["class_name"], {})}
    for old in [key for key in config if key in names]:
        config[names[old]] = config.pop(old)
    for key in (*_DROPPED, *(("input_dim",) if name != "Embedding" else ())):
        config.pop(key, None)
    for key, value in config.items():
        config[key] = _value(key, value)
    return config != before or node["class_name"] != name


def _merge(node: Node) -> None:
    config = node["config"]
    mode = config.get("mode")
    if mode not in _MERGES:
        raise Unsupported(f"layer {config.get('name')} merges by {mode!r}, and Keras 3 has no layer for that")
    node["class_name"] = _MERGES[mode]
    kept = {"axis": config.get("concat_axis", -1)} if mode == "concat" else {}
    node["config"] = {"name": config.get("name"), **kept}


def _kernel_size(config: dict[str, Any]) -> None:
    for keys in (("nb_row", "nb_col"), ("kernel_dim1", "kernel_dim2", "kernel_dim3")):
        if all(key in config for key in keys):
            config["kernel_size"] = [config.pop(key) for key in keys]


def _value(key: str, value: Any) -> Any:
    """Return an initializer, regularizer or constraint in its later form."""
    if key.endswith("initializer") and isinstance(value, str):
        return _INITIALIZERS.get(value, value)
    if not isinstance(value, dict) or "name" not in value or "class_name" in value:
        return value
    if key.endswith("regularizer"):
        return {"class_name": "L1L2", "config": {part: float(value.get(part, 0.0)) for part in ("l1", "l2")}}
    if key.endswith("constraint"):
        config = {{"m": "max_value"}.get(part, part): each for part, each in value.items() if part != "name"}
        return {"class_name": value["name"], "config": config}
    return value
