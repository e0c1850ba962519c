"""The functions of Keras 3 and tf_keras to replace, in one table.

They are methods of models, and functions that the library's modules call by global names. So every alias of
``load_model`` goes through them, even one that was imported before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fastassign.patching import models, weights
from fastassign.patching.redirect import announce, redirect, redirect_within

Library = Literal["keras", "tf_keras"]

_STATE = ("_load_state",)
_ARCHIVE = ("_load_state", "H5IOStore")
_GROUP = ("load_weights_from_hdf5_group",)


@dataclass(frozen=True, slots=True, eq=False)
class Seam:
    """A function to replace.

    Attributes
    ----------
    module : str
        The module that defines it.
    name : str
        Its name there; ``"Class.name"`` for a method.
    make : callable
        Makes its replacement; raises ``NotCovered`` if this is not the function that the replacement was written for.
    """

    module: str
    name: str
    make: Callable[[Any], Callable[..., Any]]

    def find(self) -> tuple[Any, str, Any]:
        """Return the module or class that holds the function, its name there, and the function.

        Raises
        ------
        LookupError, AttributeError
            This version of the library does not have it.
        """
        *outer, name = self.name.split(".")
        owner: Any = sys.modules[self.module]
        for part in outer:
            owner = getattr(owner, part)
        return owner, name, vars(owner)[name]


def _call(call: str, subject: str, planner: Any) -> Callable[[Any], Callable[..., Any]]:
    return partial(redirect, call, planner=planner, subject=subject)


def _within(call: str, subject: str, inner: Any, calls: tuple[str, ...]) -> Callable[[Any], Callable[..., Any]]:
    return partial(redirect_within, call, inner=inner, subject=subject, calls=calls)


def _not_ours(call: str, subject: str, reason: str) -> Callable[[Any], Callable[..., Any]]:
    return partial(announce, call, reason=reason, subject=subject)


_KERAS_MODEL = "keras.saving.load_model"
_TF_KERAS_MODEL = "tf_keras.models.load_model"

SEAMS: dict[Library, tuple[Seam, ...]] = {
    "keras": (
        Seam(
            "keras.src.models.model",
            "Model.load_weights",
            _call("keras.Model.load_weights", "filepath", weights.keras_load),
        ),
        Seam(
            "keras.src.saving.saving_api",
            "load_weights",
            _call("keras.saving.load_weights", "filepath", weights.keras_load),
        ),
        # A `keras.saving.load_weights` that was imported before calls this.
        Seam(
            "keras.src.saving.saving_lib",
            "load_weights_only",
            _call("keras.saving.load_weights", "filepath", weights.keras_load_only),
        ),
        Seam(
            "keras.src.saving.saving_lib",
            "_load_model_from_fileobj",
            _within(_KERAS_MODEL, "fileobj", models.from_keras_archive, (*_ARCHIVE, "is_memory_sufficient")),
        ),
        Seam(
            "keras.src.saving.saving_lib",
            "_load_model_from_dir",
            _within(_KERAS_MODEL, "dirpath", models.from_keras_folder, _STATE),
        ),
        Seam(
            "keras.src.legacy.saving.legacy_h5_format",
            "load_model_from_hdf5",
            _within(_KERAS_MODEL, "filepath", models.from_keras_hdf5, _GROUP),
        ),
        Seam(
            "keras.src.saving.saving_api",
            "_load_model_from_orbax_checkpoint",
            _not_ours(_KERAS_MODEL, "filepath", "it is an Orbax checkpoint"),
        ),
    ),
    "tf_keras": (
        Seam(
            "tf_keras.src.engine.training",
            "Model.load_weights",
            _call("tf_keras.Model.load_weights", "filepath", weights.tf_keras_load),
        ),
        Seam(
            "tf_keras.src.backend",
            "batch_set_value",
            _call("tf_keras.backend.batch_set_value", "tuples", weights.batch_set_value),
        ),
        Seam(
            "tf_keras.src.saving.saving_lib",
            "load_model",
            _within(_TF_KERAS_MODEL, "filepath", models.from_tf_keras_archive, _ARCHIVE),
        ),
        Seam(
            "tf_keras.src.saving.legacy.hdf5_format",
            "load_model_from_hdf5",
            _within(_TF_KERAS_MODEL, "filepath", models.from_tf_keras_hdf5, _GROUP),
        ),
        Seam(
            "tf_keras.src.saving.legacy.saved_model.load",
            "load",
            _not_ours(_TF_KERAS_MODEL, "path", "it is a SavedModel"),
        ),
    ),
}

# Keras 3.12 does not have it, because it has no Orbax checkpoints.
OPTIONAL = frozenset({"_load_model_from_orbax_checkpoint"})
