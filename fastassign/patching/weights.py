"""The calls of ``load_weights`` and ``batch_set_value`` that fastassign handles, and the loads it makes from them.

Libraries are looked up in ``sys.modules``, so that a program that uses one of them need not import the other, nor
TensorFlow.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from fastassign import verbs
from fastassign.errors import NoSession, Unsupported
from fastassign.options import LoadOptions
from fastassign.patching.redirect import Executable, NotCovered
from fastassign.report import Report

Arguments = Mapping[str, Any]

# Paths that Keras or tf_keras considers remote.
_REMOTE = re.compile(r"/cns|/cfs|/gcs|/hdfs|/readahead|/placer|/tfhub|.*://")


def local(path: Any) -> str | PurePath:
    """Return the argument if it is a path on this machine.

    Raises
    ------
    NotCovered
        It is not.
    """
    if not isinstance(path, (str, PurePath)):
        raise NotCovered(f"a {type(path).__name__} is not a path")
    if _REMOTE.match(str(path)):
        raise NotCovered("the path is remote")
    return path


def on_tensorflow() -> Any:
    """Return Keras, if its backend is TensorFlow.

    Raises
    ------
    NotCovered
        Keras has another backend.
    """
    keras = sys.modules["keras"]
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise NotCovered(f"Keras runs on {backend}")
    return keras


def planned(
    model: Any, path: str | PurePath, options: LoadOptions | None, *, feeds: bool = False, **arguments: Any
) -> Executable:
    """Plan a load.

    Parameters
    ----------
    model, path, options, arguments
        As for ``fastassign.plan``.
    feeds : bool
        Whether the library itself can load this file into a TensorFlow 1 graph. If not, it silently does nothing.

    Raises
    ------
    NotCovered
        The library can do it.
    NoSession, Unsupported
        Neither fastassign nor the library can do it.
    """
    try:
        return verbs.plan(model, path, options=options, **arguments)
    except (NoSession, Unsupported) as error:
        from fastassign.targets.variables import in_user_graph

        if in_user_graph() and not feeds:
            raise
        raise NotCovered(str(error)) from error


def keras_load(arguments: Arguments, options: LoadOptions | None) -> Executable:
    """Plan ``keras.Model.load_weights``, or ``keras.saving.load_weights``."""
    keras, path = on_tensorflow(), local(arguments["filepath"])
    model = next(iter(arguments.values()))
    if not isinstance(model, keras.layers.Layer):
        raise NotCovered(f"a {type(model).__name__} is not a model")
    further = {**arguments.get("kwargs", {})}
    by_name = further.pop("by_name", None)
    skip = further.pop("objects_to_skip", arguments.get("objects_to_skip"))
    name = str(path)
    weights = name.endswith((".weights.h5", ".weights.json"))
    legacy = name.endswith((".h5", ".hdf5")) and not weights
    # Keras itself has the right text for a call that it refuses.
    if not (weights or legacy or name.endswith(".keras")):
        raise NotCovered("fastassign does not read files with such a name")
    if further or (by_name is not None and not legacy) or (skip is not None and not weights):
        raise NotCovered("Keras refuses these arguments for this file")
    if skip is not None and not isinstance(skip, Collection):
        raise NotCovered("objects_to_skip can be read only once")
    return planned(
        model,
        path,
        options,
        by_name=bool(by_name),
        skip_mismatch=bool(arguments["skip_mismatch"]),
        objects_to_skip=skip,
    )


def keras_load_only(arguments: Arguments, options: LoadOptions | None) -> Executable:
    """Plan the function below ``keras.saving.load_weights`` for Keras 3 files."""
    # It reads "xweights.h5" as a Keras 3 file; fastassign would take it for a legacy file.
    if not str(arguments["filepath"]).endswith((".keras", ".weights.h5")):
        raise NotCovered("fastassign does not read files with such a name as Keras 3 files")
    return keras_load(arguments, options)


def tf_keras_load(arguments: Arguments, options: LoadOptions | None) -> Executable:
    """Plan ``tf_keras.Model.load_weights``."""
    path = local(arguments["filepath"])
    name = str(path)
    if not name.endswith((".h5", ".hdf5", ".keras")):
        import h5py

        if not h5py.is_hdf5(name):
            raise NotCovered("it is not an HDF5 file")
    return planned(
        arguments["self"],
        path,
        options,
        feeds=not (name.endswith(".weights.h5") or (name.endswith(".keras") and zipfile.is_zipfile(name))),
        by_name=bool(arguments["by_name"]),
        skip_mismatch=bool(arguments["skip_mismatch"]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Assignments:
    pairs: list[tuple[Any, Any]]
    options: LoadOptions | None

    def execute(self) -> Report:
        if not self.pairs:
            return Report(file="", assigned=0)
        try:
            return verbs.assign(self.pairs, options=self.options)
        except (NoSession, Unsupported) as error:
            raise NotCovered(str(error)) from error


def batch_set_value(arguments: Arguments, options: LoadOptions | None) -> Executable:
    """Prepare ``tf_keras.backend.batch_set_value``."""
    import numpy as np

    backend, tuples = sys.modules["tf_keras.src.backend"], arguments["tuples"]
    if not isinstance(tuples, (list, tuple)):
        raise NotCovered(f"a {type(tuples).__name__} can be read only once")
    for variable, _ in tuples:
        if isinstance(variable, backend.dtensor.DVariable):
            raise NotCovered("DTensor lays out values by itself")
        if not hasattr(variable, "assign"):
            raise NotCovered(f"a {type(variable).__name__} is not a variable")
    # As in tf_keras: the result of numpy for a list or a number depends on the dtype that it is asked for.
    pairs = [(variable, np.asarray(value, dtype=backend.dtype_numpy(variable))) for variable, value in tuples]
    return _Assignments(pairs, options)
