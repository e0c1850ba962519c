"""The rules that bring a configuration of an older Keras up to the running library.

A rule gets one object of the configuration (``class_name`` and ``config``), changes it in place, and returns whether it
did. Its docstring names the versions whose files it mends; ``docs/load_model.md`` lists the files and the errors. No
rule changes the results of the model; a configuration that Keras 3 can't express is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fastassign.architecture.connections import inner_calls, keyword_tensors, operations, slashes
from fastassign.architecture.keras1 import keras_1
from fastassign.architecture.saved import Node, layer_name, layers_of, own_config
from fastassign.errors import Unsupported


class Rule(NamedTuple):
    """One change between versions.

    Attributes
    ----------
    text : str
        The change, in words for the report.
    apply : callable
        Changes an object; returns whether it did.
    """

    text: str
    apply: Callable[[Node], bool]


def sequential_list(node: Node) -> bool:
    """Keras 1 to 2.2.2: a Sequential's configuration is the list of its layers."""
    if not isinstance(node["config"], list):
        return False
    node["config"] = {"name": "sequential", "layers": node["config"]}
    return True


def sequential_input(node: Node) -> bool:
    """Keras 1 to 2.3: the first layer of a Sequential carries the shape of the input."""
    layers = layers_of(node) if node["class_name"] == "Sequential" else []
    if not layers or layers[0].get("class_name") == "InputLayer":
        return False
    first = own_config(layers[0])
    shape = first.get("batch_input_shape")
    if shape is None:
        return False
    inner = own_config(first["layer"]) if isinstance(first.get("layer"), dict) else {}
    # In Keras 1 this is `input_dtype`, which is not the dtype of the layer.
    dtype = first.get("input_dtype", first.get("dtype", inner.get("dtype")))
    name = f"{first['name']}_input" if "name" in first else None
    config = {"batch_shape": shape, "dtype": dtype if isinstance(dtype, str) else "float32"}
    node["config"]["layers"].insert(
        0, {"class_name": "InputLayer", "config": {**config, **({"name": name} if name else {})}}
    )
    return True


def input_shapes(node: Node) -> bool:
    """Keras 1 to tf_keras: only an InputLayer has the ``batch_input_shape`` now, as its ``batch_shape``."""
    config = own_config(node)
    if "batch_input_shape" not in config:
        return False
    shape = config.pop("batch_input_shape")
    if node["class_name"] == "InputLayer":
        config.setdefault("batch_shape", shape)
    return True


def policies(node: Node) -> bool:
    """TensorFlow 2.0 to tf_keras: a dtype policy is an object of a class that has another name in Keras 3."""
    config = own_config(node)
    dtype = config.get("dtype")
    if not isinstance(dtype, dict) or dtype.get("class_name") not in {"Policy", "PolicyV1"}:
        return False
    config["dtype"] = own_config(dtype).get("name", "float32")
    return True


_CLASSES = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "CuDNNGRU": "GRU",
    "CuDNNLSTM": "LSTM",
    "GRUV2": "GRU",
    "LSTMV2": "LSTM",
    "DenseFeaturesV2": "DenseFeatures",
    "ThresholdedReLU": "fastassign>ThresholdedReLU",
}


def class_names(node: Node) -> bool:
    """Keras 2.0.9 to tf_keras: classes that were renamed, or merged into others."""
    old = node["class_name"]
    new = _CLASSES.get(old)
    if new is None:
        return False
    node["class_name"] = new
    config = own_config(node)
    if old == "SyncBatchNormalization":
        config["synchronized"] = True
    if old.startswith("CuDNN"):
        # The activations of NVIDIA's kernels (source: ``cudnn_recurrent.py`` of Keras 2).
        config.update(activation="tanh", recurrent_activation="sigmoid")
        if old == "CuDNNGRU":
            config["reset_after"] = True
    return True


def reset_after(node: Node) -> bool:
    """Keras 1 to 2.1.5: a GRU without the argument resets before the matrix product."""
    config = own_config(node)
    if node["class_name"] not in {"GRU", "GRUCell"} or "reset_after" in config:
        return False
    config["reset_after"] = False
    return True


# Arguments that are gone, and the values that had no effect; None stands for any value.
_GONE: tuple[tuple[str, str, tuple[Any, ...] | None], ...] = (
    ("", "time_major", (False,)),
    ("", "ragged", (False,)),
    ("Random", "rng_type", None),
    ("SpatialDropout", "noise_shape", (None,)),
    ("SpatialDropout", "trainable", None),
    ("Discretization", "trainable", None),
    ("", "groups", (1,)),
    ("SeparableConv", "kernel_initializer", None),
    ("SeparableConv", "kernel_regularizer", None),
    ("SeparableConv", "kernel_constraint", None),
    ("DepthwiseConv", "kernel_initializer", None),
    ("DepthwiseConv", "kernel_regularizer", None),
    ("DepthwiseConv", "kernel_constraint", None),
    ("MultiHeadAttention", "query_shape", None),
    ("MultiHeadAttention", "key_shape", None),
    ("MultiHeadAttention", "value_shape", None),
    ("MultiHeadAttention", "softmax_robust_masking", (False,)),
    ("BatchNormalization", "renorm", (False, None)),
    ("BatchNormalization", "renorm_clipping", None),
    ("BatchNormalization", "renorm_momentum", None),
    ("BatchNormalization", "fused", None),
    ("BatchNormalization", "virtual_batch_size", (None,)),
    ("BatchNormalization", "adjustment", (None,)),
    ("", "input_length", None),
    ("", "activity_regularizer", (None,)),
)


def retired_arguments(takes: Callable[[str, str], bool]) -> Callable[[Node], bool]:
    """Make the rule that drops arguments which the running library does not know.

    Parameters
    ----------
    takes : callable
        Gets a class and an argument; returns whether the class takes it.
    """

    def apply(node: Node) -> bool:
        config, dropped = own_config(node), False
        for prefix, key, harmless in _GONE:
            if key not in config or not node["class_name"].startswith(prefix) or takes(node["class_name"], key):
                continue
            if harmless is not None and config[key] not in harmless:
                raise Unsupported(
                    f"layer {layer_name(node)} was saved with {key}={config[key]!r}, which no longer exists",
                    hint="open the file with tf_keras: LoadOptions(library='tf_keras')",
                )
            del config[key]
            dropped = True
        return dropped

    return apply


def axis(node: Node) -> bool:
    """tf.keras: BatchNormalization's axis is a list of one."""
    config = own_config(node)
    value = config.get("axis")
    if node["class_name"] != "BatchNormalization" or not (isinstance(value, list) and len(value) == 1):
        return False
    config["axis"] = int(value[0])
    return True


# The form in which Keras 3 writes a function of the package ``fastassign``; see ``retired.py``.
_HARD_SIGMOID = {
    "module": "builtins",
    "class_name": "function",
    "config": "fastassign>hard_sigmoid",
    "registered_name": "function",
}


def hard_sigmoids(node: Node) -> bool:
    """Keras 1 to tf_keras: ``hard_sigmoid`` is another function than Keras 3's of that name."""
    config, changed = own_config(node), False
    for key in ("activation", "recurrent_activation"):
        if config.get(key) == "hard_sigmoid":
            config[key] = dict(_HARD_SIGMOID)
            changed = True
    return changed


def initializers(node: Node) -> bool:
    """Keras 1 to TensorFlow 1.15: initializers with a dtype, the distribution normal, or a version in the name."""
    changed = False
    for key, value in own_config(node).items():
        if not key.endswith("initializer") or not isinstance(value, dict) or not isinstance(value.get("config"), dict):
            continue
        config, name = value["config"], str(value.get("class_name", ""))
        if config.pop("dtype", None) is not None:
            changed = True
        if config.get("distribution") == "normal":
            config["distribution"] = "truncated_normal"
            changed = True
        if name.endswith(("V1", "V2")):
            value["class_name"] = name[:-2]
            changed = True
    return changed


def wrapped(node: Node) -> bool:
    """Keras 1 to 2.x: the layers inside a wrapper or an RNN do not name the module of their class."""
    changed = False
    config = own_config(node)
    for key in ("layer", "backward_layer", "cell", "cells"):
        values = config.get(key)
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, dict) and "class_name" in value and "module" not in value:
                package, _, name = value["class_name"].rpartition(">")
                if package:
                    value["registered_name"] = value["class_name"]
                else:
                    value.update(module="keras.layers", registered_name=name)
                value["class_name"] = name
                changed = True
    return changed


def score_modes(node: Node) -> bool:
    """tf_keras: Keras 3 confuses the score mode ``dot`` of an attention with the function ``keras.layers.dot``."""
    config = own_config(node)
    if node["class_name"] != "Attention" or config.get("score_mode") != "dot":
        return False
    del config["score_mode"]  # the default
    return True


def modules(node: Node) -> bool:
    """Keras 2.12 to tf_keras, archives: the classes of models are in another module now."""
    if node["class_name"] not in {"Functional", "Sequential", "Model"} or node.get("module") in {None, "keras"}:
        return False
    if not str(node["module"]).startswith(("keras.", "tf_keras.")):
        return False
    node.update(module="keras", registered_name=None)
    return True


def rules(
    takes: Callable[[str, str], bool], module_of: Callable[[str], str | None], *, version: str
) -> tuple[Rule, ...]:
    """Return the rules for a legacy file in Keras 3, in the order in which they apply to one object.

    Parameters
    ----------
    takes : callable
        See ``retired_arguments``.
    module_of : callable
        See ``operations``.
    version : str
        The version of Keras that saved the file; empty where the file does not say, as in Keras 1.
    """
    if version.startswith("3."):
        return (Rule("operators told from layers", operations(module_of)),)
    return (
        Rule("a Sequential's list of layers made a configuration", sequential_list),
        *_of_keras_1(version),
        Rule("an input layer added to a Sequential", sequential_input),
        Rule("input shapes moved to the input layers", input_shapes),
        Rule("tensors among keyword arguments marked", keyword_tensors),
        Rule("calls of nested models counted from 0", inner_calls),
        Rule("classes renamed", class_names),
        Rule("reset_after=False for GRUs that do not have the argument", reset_after),
        Rule("Keras 2's hard_sigmoid kept", hard_sigmoids),
        Rule("dtype policies named", policies),
        Rule("axes of BatchNormalization made numbers", axis),
        Rule("initializers renamed", initializers),
        Rule("the score mode of attentions left to its default", score_modes),
        Rule("names without slashes", slashes),
        Rule("retired arguments dropped", retired_arguments(takes)),
        Rule("modules of wrapped layers named", wrapped),
        Rule("modules of models renamed", modules),
    )


def rules_for_tf_keras(version: str) -> tuple[Rule, ...]:
    """Return the rules for a legacy file in tf_keras, which reads everything else of Keras 2 itself."""
    return (*_of_keras_1(version), Rule("reset_after=False for GRUs that do not have the argument", reset_after))


def _of_keras_1(version: str) -> tuple[Rule, ...]:
    return () if version and not version.startswith("1.") else (Rule("Keras 1's names replaced", keras_1),)
