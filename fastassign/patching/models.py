"""``load_model``: the library builds the model, fastassign loads its weights.

The library's functions below ``load_model`` run unchanged, until they call a function of this page for the weights.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from fastassign.options import LoadOptions
from fastassign.patching.redirect import Executable, NotCovered, redirect
from fastassign.patching.weights import Arguments, local, on_tensorflow, planned


@dataclass(frozen=True, slots=True, eq=False)
class _Saved:
    """The file that a model is being made from."""

    path: str | PurePath
    stamp: tuple[int, ...]

    @classmethod
    def at(cls, path: str | PurePath, descriptor: int | None = None) -> _Saved:
        """Remember the identity of the file at a path, or of an open one."""
        try:
            found = os.stat(path if descriptor is None else descriptor)
        except OSError as error:
            raise NotCovered(str(error)) from error
        return cls(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))

    def plan(self, model: Any, options: LoadOptions | None, *, feeds: bool = False) -> Executable:
        """Plan the load of the weights, if the path still names the file that the model was built from."""
        if self.at(self.path).stamp != self.stamp:
            raise NotCovered("the file was replaced while the model was built")
        return planned(model, self.path, options, feeds=feeds)


class _Unopened:
    """A placeholder for the weights of an archive, because opening the real store reads all of the archive."""

    def __init__(self, name: str, archive: Any, mode: str = "r") -> None:
        self.name, self.archive, self.mode = name, archive, mode

    def close(self) -> None:
        """Close nothing."""


def from_keras_archive(what: str, arguments: Arguments) -> dict[str, Any]:
    """Replace the functions that Keras calls to load an open ``.keras`` file."""
    on_tensorflow()
    library, file = sys.modules["keras.src.saving.saving_lib"], arguments["fileobj"]
    name = getattr(file, "name", None)
    if not isinstance(name, str) or not name.endswith(".keras"):
        raise NotCovered("the model is read from an object, not from a file")
    saved = _Saved.at(name, file.fileno())

    def opened(model: Any, store: _Unopened) -> Any:
        if library.is_memory_sufficient(model):
            return library.H5IOStore(io.BytesIO(store.archive.read(store.name)), mode=store.mode)
        return library.H5IOStore(store.name, store.archive, mode=store.mode)

    def never(_: Any) -> bool:
        # After any exception here, Keras opens the store in the archive, and copies it nowhere.
        raise MemoryError

    return {
        "_load_state": _load_state(what, library, saved, opened),
        "H5IOStore": _Unopened,
        "is_memory_sufficient": never,
    }


def from_keras_folder(what: str, arguments: Arguments) -> dict[str, Any]:
    """Replace the functions that Keras calls to load an unpacked ``.keras`` file."""
    on_tensorflow()
    library = sys.modules["keras.src.saving.saving_lib"]
    saved = _Saved.at(PurePath(local(arguments["dirpath"]), "model.weights.h5"))
    return {"_load_state": _load_state(what, library, saved)}


def from_tf_keras_archive(what: str, arguments: Arguments) -> dict[str, Any]:
    """Replace the functions that tf_keras calls to load a ``.keras`` file."""
    library = sys.modules["tf_keras.src.saving.saving_lib"]
    saved = _Saved.at(local(arguments["filepath"]))

    def opened(_: Any, store: _Unopened) -> Any:
        return library.H5IOStore(store.name, archive=store.archive, mode=store.mode)

    return {"_load_state": _load_state(what, library, saved, opened), "H5IOStore": _Unopened}


def from_keras_hdf5(what: str, arguments: Arguments) -> dict[str, Any]:
    """Replace the functions that Keras calls to load a whole-model ``.h5`` file."""
    on_tensorflow()
    return _from_hdf5(what, sys.modules["keras.src.legacy.saving.legacy_h5_format"], arguments["filepath"])


def from_tf_keras_hdf5(what: str, arguments: Arguments) -> dict[str, Any]:
    """Replace the functions that tf_keras calls to load a whole-model ``.h5`` file."""
    file = arguments["filepath"]
    # `load_model` opened it as a GFile; an `h5py.File` of the caller's may exist in memory only.
    path = file.name if type(file).__name__ == "GFile" else file
    return _from_hdf5(what, sys.modules["tf_keras.src.saving.legacy.hdf5_format"], path)


def _from_hdf5(what: str, library: Any, path: Any) -> dict[str, Any]:
    saved = _Saved.at(local(path))
    if str(path).endswith(".weights.h5"):
        raise NotCovered("fastassign reads a file of this name in the format of Keras 3")

    def planner(arguments: Arguments, options: LoadOptions | None) -> Executable:
        group, model = list(arguments.values())[:2]
        if "layer_names" in group.file.attrs:
            raise NotCovered("the file holds two sets of weights")
        if not model.built:
            raise NotCovered("the model is not built yet")
        return saved.plan(model, options, feeds=library.__name__.startswith("tf_keras."))

    name = "load_weights_from_hdf5_group"
    return {name: redirect(what, getattr(library, name), planner)}


def _load_state(
    what: str, library: Any, saved: _Saved, opened: Callable[[Any, _Unopened], Any] | None = None
) -> Callable[..., Any]:
    """Make a ``_load_state`` for one load: weights through fastassign, assets by the library."""
    load_state = vars(library)["_load_state"]

    @functools.wraps(load_state)
    def stock(model: Any, weights_store: Any, *args: Any, **kwargs: Any) -> None:
        if opened is None or not isinstance(weights_store, _Unopened):
            load_state(model, weights_store, *args, **kwargs)
            return
        store = opened(model, weights_store)
        try:
            load_state(model, store, *args, **kwargs)
        finally:
            store.close()

    def planner(arguments: Arguments, options: LoadOptions | None) -> Executable:
        store = arguments["weights_store"]
        if not isinstance(store, (_Unopened, library.H5IOStore)):
            raise NotCovered(f"the weights are in a {type(store).__name__}")
        model = next(iter(arguments.values()))
        # Keras 3 refuses such a model in `load_weights`, but not in `load_model`.
        if library.__name__.startswith("keras.") and not model.built:
            raise NotCovered("the model is not built yet")
        return saved.plan(model, options)

    # It is false, so that Keras takes no weights from it, and of the class that Keras insists on.
    spent = type("_Spent", (library.H5IOStore,), {"__init__": _do_nothing, "__bool__": _false, "has_path": _false})

    def assets(arguments: Arguments) -> None:
        if arguments["assets_store"] is not None:
            load_state(**{**arguments, "weights_store": spent()})

    return redirect(what, stock, planner, finish=assets)


def _do_nothing(_: Any) -> None:
    """Open nothing."""


def _false(*_: Any) -> bool:
    return False
