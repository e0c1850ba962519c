"""Which library a model belongs to, found without importing the other one."""

from __future__ import annotations

from typing import Any

from fastassign.errors import NoTensorFlow, Unsupported
from fastassign.targets.target import ModelTargets


def check_tensorflow() -> None:
    """Raise an error that says what to install where TensorFlow can't be imported.

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
            hint="pip install fastassign[tensorflow], or fastassign[tensorflow-cpu]; inspect works without",
        ) from error


def discover(model: Any) -> ModelTargets:
    """Return a model seen as targets.

    Parameters
    ----------
    model : keras.Model or tf_keras.Model
        Keras 3 on the TensorFlow backend, or tf_keras; layers of either work for Keras 3 files.

    Raises
    ------
    Unsupported
        The model is of another kind, or TensorFlow is in graph mode.
    NoTensorFlow
        TensorFlow is not installed.
    TypeError
        The argument is not a model at all.
    """
    modules = {base.__module__.split(".")[0] for base in type(model).__mro__}
    if modules & {"keras", "tf_keras"}:
        check_tensorflow()
    if "keras" in modules:
        from fastassign.targets.keras3 import Keras3Targets
        from fastassign.targets.variables import check_eager

        check_eager()
        return Keras3Targets(model)
    if "tf_keras" in modules:
        from fastassign.targets.tf_keras import TfKerasTargets

        return TfKerasTargets(model)
    if "tensorflow" in modules:
        raise Unsupported(
            f"{type(model).__name__} is a TensorFlow object without Keras layers; loading into those is not "
            "supported yet",
            hint="pass a Keras or tf_keras model",
        )
    raise TypeError(f"model must be a Keras or tf_keras model, not {type(model).__name__}")
