"""Finds the library that a model belongs to, without importing the other one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastassign.errors import NoTensorFlow, Unsupported
from fastassign.targets.target import ModelTargets

if TYPE_CHECKING:
    from fastassign.targets.bare import BareTargets


def check_tensorflow() -> None:
    """Raise an error with installation advice if TensorFlow can't be imported.

    Raises
    ------
    NoTensorFlow
        TensorFlow is not installed, or broken.
    """
    try:
        import tensorflow as tf  # noqa: F401
    except ImportError as error:
        raise NoTensorFlow(
            f"fastassign loads into TensorFlow variables, and TensorFlow can't be imported: {error}",
            hint="pip install fastassign[tensorflow], or fastassign[tensorflow-cpu]; inspect works without TensorFlow",
        ) from error


def discover(model: Any) -> ModelTargets | BareTargets:
    """Return the targets of a model.

    Parameters
    ----------
    model : keras.Model, tf_keras.Model, or mapping or sequence of variables
        A model of Keras 3 on the TensorFlow backend, or of tf_keras (for Keras 3 files, a layer of either works too).
        Or variables: a mapping from their names in the file, or a sequence if the file has their TensorFlow names.

    Raises
    ------
    Unsupported
        The model is of another kind.
    NoTensorFlow
        TensorFlow is not installed.
    TypeError
        The argument is not a model at all.
    """
    modules = {base.__module__.split(".")[0] for base in type(model).__mro__}
    bare = isinstance(model, (Mapping, list, tuple))
    if bare or modules & {"keras", "tf_keras"}:
        check_tensorflow()
    if bare:
        from fastassign.targets.bare import BareTargets

        return BareTargets(model)
    if "keras" in modules:
        from fastassign.targets.keras3 import Keras3Targets

        return Keras3Targets(model)
    if "tf_keras" in modules:
        from fastassign.targets.tf_keras import TfKerasTargets

        return TfKerasTargets(model)
    if "tensorflow" in modules:
        raise Unsupported(
            f"{type(model).__name__} is a TensorFlow object without Keras layers; loading into those is not "
            "supported yet",
            hint="pass its variables, as a list or as a mapping from their names in the file",
        )
    raise TypeError(f"model must be a Keras or tf_keras model, or variables, not {type(model).__name__}")
