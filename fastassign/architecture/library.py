"""The two libraries that build models, and the functions that ``load_model`` needs of each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastassign.options import LoadOptions

if TYPE_CHECKING:
    from fastassign.architecture.saved import SavedModel


class ModelLibrary(Protocol):
    """Builds and compiles models: the modules ``keras3`` and ``tf_keras`` of this room."""

    def all_objects(self, custom_objects: Mapping[str, Any]) -> dict[str, Any]:
        """Return custom objects together with the registered ones, which win, as in the library."""

    def build(self, saved: SavedModel, known: Mapping[str, Any], *, safe_mode: bool) -> tuple[Any, tuple[str, ...]]:
        """Build the model of a legacy file, with initial values and not compiled.

        Parameters
        ----------
        saved : SavedModel
            From a legacy file.
        known : mapping of str to object
            Classes and functions that are not the library's own; see ``all_objects``.
        safe_mode : bool
            Whether Python code in the file is refused.

        Returns
        -------
        (model, tuple of str)
            The model, and the changes that its configuration needed.
        """

    def build_archive(
        self, saved: SavedModel, custom_objects: Mapping[str, Any], *, compiled: bool, safe_mode: bool
    ) -> tuple[Any, tuple[str, ...]]:
        """Build the model of a ``.keras`` archive, with initial values, and compiled if asked for; see ``build``."""

    def load_assets(self, model: Any, path: Path) -> None:
        """Load the members of a ``.keras`` archive that are not numbers: vocabularies, and files of custom layers."""

    def compile_model(self, model: Any, training: dict[str, Any], known: Mapping[str, Any]) -> tuple[str, ...]:
        """Compile a model as a legacy file says.

        Parameters
        ----------
        model : model
            The model.
        training : dict
            The file's ``training_config``.
        known : mapping of str to object
            See ``all_objects``.

        Returns
        -------
        tuple of str
            The changes that the configuration needed.
        """

    def build_optimizer(self, model: Any) -> list[Any]:
        """Make the variables of a model's optimizer, and return the variables that it updates."""

    def optimizer_variables(self, model: Any) -> list[Any]:
        """Return the variables of a built optimizer, in the order in which a file has them."""

    def variables(self, model: Any) -> list[Any]:
        """Return the TensorFlow variables of a model and its optimizer."""


def find_library(options: LoadOptions) -> ModelLibrary:
    """Return the library that the options name, else the one that ``tf.keras`` is in this process.

    Importing it here imports TensorFlow too.
    """
    name = options.library
    if name is None:
        name = "tf_keras" if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in {"true", "1"} else "keras"
    if name == "tf_keras":
        from fastassign.architecture import tf_keras

        return tf_keras
    from fastassign.architecture import keras3

    return keras3
