"""Models of tf_keras, built as a file describes them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tf_keras
from tf_keras.src.optimizers import optimizer as new_optimizers
from tf_keras.src.saving import object_registration, saving_lib, serialization_lib
from tf_keras.src.saving.legacy import model_config as model_configs
from tf_keras.src.saving.legacy import saving_utils
from tf_keras.src.saving.legacy.saved_model import json_utils

from fastassign.architecture.rules import rules_for_tf_keras
from fastassign.architecture.saved import SavedModel
from fastassign.architecture.training import for_tf_keras
from fastassign.architecture.unknown import check_code, check_known
from fastassign.architecture.upgrade import upgraded
from fastassign.errors import Unsupported


def all_objects(custom_objects: Mapping[str, Any]) -> dict[str, Any]:
    """Return custom objects together with the registered ones, which win, as in tf_keras."""
    local = object_registration._THREAD_LOCAL_CUSTOM_OBJECTS.__dict__
    return {**custom_objects, **local, **object_registration._GLOBAL_CUSTOM_OBJECTS}


def build(saved: SavedModel, known: Mapping[str, Any], *, safe_mode: bool) -> tuple[Any, tuple[str, ...]]:
    """Build the model of a legacy file, with initial values and not compiled; see ``ModelLibrary``."""
    _check_version(saved)
    config, changes = upgraded(saved.config, rules_for_tf_keras(saved.keras_version))
    if safe_mode:
        check_code(config)
    check_known(config, lambda name: _is_known(name, known))
    # `json_utils` knows the TensorShapes and tuples that the JSON holds.
    decoded = json_utils.decode(json.dumps(config))
    return model_configs.model_from_config(decoded, custom_objects=dict(known)), changes


def _check_version(saved: SavedModel) -> None:
    if saved.keras_version.startswith("3."):
        raise Unsupported(
            f"the file was saved by Keras {saved.keras_version}, whose configurations tf_keras does not read",
            file=saved.path,
            hint="LoadOptions(library='keras')",
        )


def build_archive(
    saved: SavedModel, custom_objects: Mapping[str, Any], *, compiled: bool, safe_mode: bool
) -> tuple[Any, tuple[str, ...]]:
    """Build the model of a ``.keras`` archive, with initial values, and compiled if asked for; see ``build``."""
    _check_version(saved)
    if safe_mode:
        check_code(saved.config)
    config = saved.config if compiled else {**saved.config, "compile_config": None}
    with serialization_lib.ObjectSharingScope():
        model = serialization_lib.deserialize_keras_object(config, dict(custom_objects), safe_mode=safe_mode)
    return model, ()


def load_assets(model: Any, path: Path) -> None:
    """Load the members of a ``.keras`` archive that are not numbers: vocabularies, and files of custom layers."""
    with zipfile.ZipFile(path) as archive:
        if len(archive.namelist()) <= 3:
            return
        assets = saving_lib.DiskIOStore("assets", archive=archive, mode="r")
        try:
            saving_lib._load_state(
                model, weights_store=None, assets_store=assets, inner_path="", visited_trackables=set()
            )
        finally:
            assets.close()


def _is_known(name: str, known: Mapping[str, Any]) -> bool:
    # The layers that stand for TensorFlow's own ops in a model are not exported.
    is_own = name in known or hasattr(tf_keras.layers, name) or hasattr(tf_keras, name)
    return is_own or name in {"Functional", "TFOpLambda", "TensorFlowOpLayer", "SlicingOpLambda", "ClassMethod"}


def compile_model(model: Any, training: dict[str, Any], known: Mapping[str, Any]) -> tuple[str, ...]:
    """Compile a model as a legacy file says; see ``ModelLibrary``."""
    config, changes = for_tf_keras(training)
    arguments = saving_utils.compile_args_from_training_config(json_utils.decode(json.dumps(config)), dict(known))
    model.compile(**arguments, from_serialized=True)
    return changes


def build_optimizer(model: Any) -> list[Any]:
    """Make the variables of a model's optimizer, and return the variables that it updates."""
    variables = list(model.trainable_variables)
    if isinstance(model.optimizer, new_optimizers.Optimizer):
        model.optimizer.build(variables)
    else:
        model.optimizer._create_all_weights(variables)
    return variables


def optimizer_variables(model: Any) -> list[Any]:
    """Return the variables of a built optimizer, in the order in which a file has them."""
    variables = model.optimizer.variables
    return list(variables() if callable(variables) else variables)


def variables(model: Any) -> list[Any]:
    """Return the TensorFlow variables of a model and its optimizer."""
    own = list(model.variables)
    if getattr(model, "optimizer", None) is not None:
        own += optimizer_variables(model)
    return [getattr(variable, "_variable", variable) for variable in own]
