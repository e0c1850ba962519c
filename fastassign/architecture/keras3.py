"""Models of Keras 3, built as a file describes them."""

from __future__ import annotations

import inspect
import json
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import keras
from keras.src.legacy.saving import json_utils, saving_options, saving_utils
from keras.src.ops import core as core_ops
from keras.src.ops import image as image_ops
from keras.src.ops import linalg as linalg_ops
from keras.src.ops import math as math_ops
from keras.src.ops import nn as nn_ops
from keras.src.ops import numpy as numpy_ops
from keras.src.saving import object_registration, saving_lib, serialization_lib

from fastassign.architecture import retired  # noqa: F401 - registers the names that old configurations use
from fastassign.architecture.connections import MERGING
from fastassign.architecture.rules import rules
from fastassign.architecture.saved import SavedModel
from fastassign.architecture.training import for_keras3
from fastassign.architecture.unknown import check_code, check_known
from fastassign.architecture.upgrade import upgraded


def build(saved: SavedModel, known: Mapping[str, Any], *, safe_mode: bool) -> tuple[Any, tuple[str, ...]]:
    """Build the model of a legacy file, with initial values and not compiled; see ``ModelLibrary``."""
    config, changes = upgraded(saved.config, rules(_takes, _module_of, version=saved.keras_version))
    if safe_mode:
        check_code(config)
    check_known(config, lambda name: _is_known(name, known))
    # `json_utils` knows the TensorShapes and tuples that older JSON holds.
    decoded = json_utils.decode(json.dumps(config))
    scopes = saving_options.keras_option_scope(use_legacy_config=True), serialization_lib.SafeModeScope(safe_mode)
    with scopes[0], scopes[1]:
        return saving_utils.model_from_config(decoded, custom_objects=dict(known)), changes


def build_archive(
    saved: SavedModel, custom_objects: Mapping[str, Any], *, compiled: bool, safe_mode: bool
) -> tuple[Any, tuple[str, ...]]:
    """Build the model of a ``.keras`` archive, with initial values, and compiled if asked for; see ``build``."""
    config = saved.config if compiled else {**saved.config, "compile_config": None}
    changes: tuple[str, ...] = ()
    if saved.keras_version.startswith("2."):
        config, changes = upgraded(config, rules(_takes, _module_of, version=saved.keras_version))
        training = config.get("compile_config")
        if isinstance(training, dict):
            # The same as in a legacy file, but for one name.
            training["optimizer_config"] = training.pop("optimizer", None)
            training, more = for_keras3(training, _optimizer_arguments, lambda name: hasattr(keras.metrics, name))
            training["optimizer"] = training.pop("optimizer_config")
            # Keras 3 does not accept None for an argument that was left to its default.
            config["compile_config"] = {key: value for key, value in training.items() if value is not None}
            changes += more
    if safe_mode:
        check_code(config)
    with serialization_lib.ObjectSharingScope():
        return keras.saving.deserialize_keras_object(
            config, custom_objects=dict(custom_objects), safe_mode=safe_mode
        ), changes


def load_assets(model: Any, path: Path) -> None:
    """Load the members of a ``.keras`` archive that are not numbers: vocabularies, and files of custom layers."""
    with zipfile.ZipFile(path) as archive:
        # The same test as Keras': configuration, metadata and weights are three members.
        if len(archive.namelist()) <= 3:
            return
        assets = saving_lib.DiskIOStore("assets", archive=archive, mode="r")
        try:
            saving_lib._load_state(
                model,
                weights_store=None,
                assets_store=assets,
                inner_path="",
                visited_saveables=set(),
                failed_saveables=set(),
                error_msgs={},
            )
        finally:
            assets.close()


def all_objects(custom_objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return custom objects together with the registered ones, which win, as in Keras."""
    scope = keras.src.backend.common.global_state.get_global_attribute("custom_objects_scope_dict", {})
    return {**custom_objects, **object_registration.GLOBAL_CUSTOM_OBJECTS, **scope}


def _is_known(name: str, known: Mapping[str, Any]) -> bool:
    is_own = hasattr(keras.layers, name) or hasattr(keras, name) or _module_of(name) is not None
    return name in known or is_own or name == "Functional"


@cache
def _module_of(class_name: str) -> str | None:
    """Return the module of an operation; ``None`` for a class that is not one, or is also the name of a layer."""
    for module in (numpy_ops, math_ops, nn_ops, core_ops, linalg_ops, image_ops):
        found = vars(module).get(class_name)
        if inspect.isclass(found) and issubclass(found, keras.Operation) and found.__module__ == module.__name__:
            is_layer = hasattr(keras.layers, class_name) and class_name not in MERGING
            return None if is_layer else str(module.__name__)
    return None


@cache
def _takes(class_name: str, argument: str) -> bool:
    """Whether a layer's constructor takes an argument, its own or one of a base class."""
    cls = getattr(keras.layers, class_name, None)
    if cls is None:
        return True
    for base in cls.__mro__:
        if "__init__" not in base.__dict__:
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        if argument in parameters:
            return True
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            return False
    return False


def compile_model(model: Any, training: dict[str, Any], known: Mapping[str, Any]) -> tuple[str, ...]:
    """Compile a model as a legacy file says; see ``ModelLibrary``."""
    config, changes = for_keras3(training, _optimizer_arguments, lambda name: hasattr(keras.metrics, name))
    optimizer = config["optimizer_config"]["class_name"]
    if optimizer not in known and _optimizer_arguments(optimizer) is None:
        raise ValueError(f"Unknown optimizer: {optimizer!r}")
    with saving_options.keras_option_scope(use_legacy_config=True):
        decoded = json_utils.decode(json.dumps(config))
        model.compile(**saving_utils.compile_args_from_training_config(decoded, dict(known)))
    return changes


def build_optimizer(model: Any) -> list[Any]:
    """Make the variables of a model's optimizer, and return the variables that it updates."""
    variables = list(model.trainable_variables)
    model.optimizer.build(variables)
    return variables


def optimizer_variables(model: Any) -> list[Any]:
    """Return the variables of a built optimizer, in the order in which a file has them."""
    return list(model.optimizer.variables)


def _optimizer_arguments(class_name: str) -> set[str] | None:
    cls = next((cls for name, cls in vars(keras.optimizers).items() if name.lower() == class_name.lower()), None)
    if not inspect.isclass(cls):
        return None
    return {
        name
        for base in cls.__mro__
        if "__init__" in base.__dict__
        for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    }


def variables(model: Any) -> list[Any]:
    """Return the TensorFlow variables of a model and its optimizer."""
    own = list(model.variables)
    if getattr(model, "optimizer", None) is not None:
        own += optimizer_variables(model)
    return [getattr(variable, "_value", variable) for variable in own]
