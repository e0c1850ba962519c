"""The compilation of a model, brought up to the running library.

Keras 2 had other names: ``lr``, ``decay``, short names of losses, metrics as functions in a wrapper.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

# Old and short names of losses and metrics; Keras 3 reads the long ones only (docs/internals/keras.md, B2).
_NAMES = {
    "mse": "mean_squared_error",
    "MSE": "mean_squared_error",
    "mae": "mean_absolute_error",
    "MAE": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "MAPE": "mean_absolute_percentage_error",
    "msle": "mean_squared_logarithmic_error",
    "MSLE": "mean_squared_logarithmic_error",
    "kld": "kl_divergence",
    "KLD": "kl_divergence",
    "kullback_leibler_divergence": "kl_divergence",
    "cosine": "cosine_similarity",
    "cosine_proximity": "cosine_similarity",
    "bce": "binary_crossentropy",
    "BCE": "binary_crossentropy",
    "logcosh": "log_cosh",
}


# Classes of tf.keras that wrap a function; Keras 3 has a class of its own for each such function.
_WRAPPERS = frozenset({"MeanMetricWrapper", "SumOverBatchSizeMetricWrapper"})


def for_keras3(
    training: dict[str, Any], arguments_of: Callable[[str], set[str] | None], is_metric: Callable[[str], bool]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Bring a ``training_config`` up to Keras 3.

    Parameters
    ----------
    training : dict
        As in the file; it is not changed.
    arguments_of : callable
        Returns the arguments that an optimizer's class takes; ``None`` for a class that is not Keras' own.
    is_metric : callable
        Whether Keras 3 has a metric of this class name.

    Returns
    -------
    (dict, tuple of str)
        The new configuration, and the changes.
    """
    made = copy.deepcopy(training)
    changes: list[str] = []
    optimizer = made.get("optimizer_config")
    if isinstance(optimizer, dict) and isinstance(optimizer.get("config"), dict):
        changes += _optimizer(optimizer, arguments_of)
    for key in ("loss", "metrics", "weighted_metrics"):
        renamed = _renamed(made.get(key), is_metric)
        if renamed != made.get(key):
            changes.append(f"{key} renamed")
            made[key] = renamed
    made.setdefault("loss_weights", None)
    return made, tuple(changes)


def for_tf_keras(training: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Bring a ``training_config`` up to tf_keras, where one name of Keras 2 is gone; see ``for_keras3``."""
    made = copy.deepcopy(training)
    changes = []
    for key in ("loss", "metrics", "weighted_metrics"):
        renamed = _replaced(made.get(key), {"cosine_proximity": "cosine_similarity"})
        if renamed != made.get(key):
            changes.append(f"{key} renamed")
            made[key] = renamed
    return made, tuple(changes)


def _replaced(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [_replaced(item, names) for item in value]
    if isinstance(value, dict) and "class_name" not in value:
        return {key: _replaced(item, names) for key, item in value.items()}
    return value


def _optimizer(optimizer: dict[str, Any], arguments_of: Callable[[str], set[str] | None]) -> list[str]:
    config, changes = optimizer["config"], []
    package, _, name = str(optimizer.get("class_name")).rpartition(">")
    known = arguments_of(name) if package in {"", "Custom"} else None
    if known is None:
        return []
    # TensorFlow 2.11 on registers its own optimizers as if they were custom; under that name Keras 3 would make one of
    # the same class with all arguments at their defaults.
    optimizer["class_name"] = name
    if "lr" in config:
        config.setdefault("learning_rate", config.pop("lr"))
        changes.append("optimizer: lr is learning_rate")
    decay = config.pop("decay", None)
    if decay and isinstance(config.get("learning_rate"), (int, float)):
        # Keras 1 and 2: lr / (1 + decay * iterations), which is this schedule.
        config["learning_rate"] = {
            "class_name": "InverseTimeDecay",
            "config": {"initial_learning_rate": config["learning_rate"], "decay_steps": 1, "decay_rate": decay},
        }
        changes.append("optimizer: decay made a schedule")
    rate = config.get("learning_rate")
    if isinstance(rate, dict) and "class_name" in rate:
        rate.setdefault("module", "keras.optimizers.schedules")
        rate.setdefault("registered_name", None)
    if config.get("epsilon", 0) is None:
        del config["epsilon"]  # the default
    return changes + [f"optimizer: {key}={config.pop(key)!r} dropped" for key in sorted(config.keys() - known)]


def _renamed(value: Any, is_metric: Callable[[str], bool]) -> Any:
    """Rename losses and metrics, inside lists and mappings too."""
    if isinstance(value, str):
        return _NAMES.get(value, value)
    if isinstance(value, list):
        return [_renamed(item, is_metric) for item in value]
    if isinstance(value, dict) and "class_name" not in value:
        return {key: _renamed(item, is_metric) for key, item in value.items()}
    is_object = isinstance(value, dict) and isinstance(value.get("config"), dict)
    return _object(value["class_name"], {**value["config"]}, is_metric) if is_object else value


def _object(class_name: str, config: dict[str, Any], is_metric: Callable[[str], bool]) -> Any:
    if config.get("reduction") == "auto":
        config["reduction"] = "sum_over_batch_size"
    function = config.get("fn")
    if class_name in _WRAPPERS and isinstance(function, str):
        del config["fn"]
        function = _NAMES.get(function, function)
        metric = "".join(part.capitalize() for part in function.split("_"))
        return {"class_name": metric, "config": config} if is_metric(metric) else function
    return {"class_name": class_name, "config": config}
