"""The models that ``--model`` names."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

import typer

import fastassign
from fastassign.errors import FastAssignError
from fastassign.targets.discover import discover


def model_of(source: str) -> Any:
    """Return the model that ``--model`` names."""
    if source.endswith((".keras", ".h5", ".hdf5")):
        try:
            return fastassign.load_model(source, compile=False)
        except FastAssignError:
            raise
        except Exception as error:
            text = f"{source} can't be built: {type(error).__name__}: {error}"
            raise typer.BadParameter(
                f"{text}\n(for classes of your own use module:function)", param_hint="--model"
            ) from error
    module, _, name = source.partition(":")
    if not name:
        raise typer.BadParameter(
            f"{source!r} is neither a .keras or .h5 file nor module:function", param_hint="--model"
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise typer.BadParameter(f"{source!r} can't be imported: {error}", param_hint="--model") from error
    if not callable(function):
        raise typer.BadParameter(
            f"{source} is not a function that returns a model, but of type {type(function).__name__}",
            param_hint="--model",
        )
    try:
        model = function()
    except Exception as error:
        # The traceback of that function, without our frames.
        traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        raise typer.BadParameter(f"{source} raised {type(error).__name__}: {error}", param_hint="--model") from error
    try:
        discover(model)
    except TypeError as error:
        raise typer.BadParameter(
            f"{source} did not return a model, but an object of type {type(model).__name__}", param_hint="--model"
        ) from error
    return model
