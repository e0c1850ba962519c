"""``load_model``: from a file to a model that predicts, and goes on training."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastassign.architecture.library import ModelLibrary, find_library
from fastassign.architecture.restore import restore_optimizer
from fastassign.catalog.catalog import Catalog
from fastassign.errors import Changed, Malformed, Mismatch
from fastassign.gc_pause import gc_paused
from fastassign.matching.match import Request
from fastassign.options import LoadOptions
from fastassign.pipeline import LoadSpec
from fastassign.plan import Plan
from fastassign.report import Report
from fastassign.targets.deferred_init import deferred_init
from fastassign.targets.discover import check_tensorflow
from fastassign.targets.target import Layout

if TYPE_CHECKING:
    from fastassign.architecture.saved import SavedModel


def load_model(
    path: str | os.PathLike[str],
    *,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
    options: LoadOptions | None = None,
) -> Any:
    """Load a whole model: its architecture, weights and training state.

    Files of older versions are brought up to the running library, by the rules that ``docs/load_model.md`` lists.
    Weights and the optimizer's state are found by name; random initial values that the file replaces are not made.

    Parameters
    ----------
    path : str or os.PathLike
        A whole-model ``.h5`` file of Keras 1 to 3 or tf_keras, or a ``.keras`` archive. The content decides, not the
        name.
    custom_objects : mapping of str to object, optional
        Classes and functions of the model that Keras does not have, by the names in the file.
    compile : bool
        Whether the model is compiled as it was, and the state of its optimizer is restored.
    safe_mode : bool
        Whether Python code in the file (Lambda layers) is refused instead of run.
    options : LoadOptions, optional
        Every other knob: ``library`` chooses between Keras 3 and tf_keras, ``on_report`` gets the ``Report``.

    Returns
    -------
    keras.Model or tf_keras.Model
        The model.

    Raises
    ------
    Mismatch (ValueError)
        The file holds no model; or its model has layers of unknown classes, which the text lists; or its weights do
        not fit.
    Refused (ValueError)
        The file holds Python code, or something else that the policy does not allow.
    NotFound, Denied, NotAFile, Malformed, Truncated (OSError)
        The file can't be opened, or is damaged.

    Examples
    --------
    >>> import fastassign as fa
    >>> model = fa.load_model("model.h5")  # doctest: +SKIP
    """
    check_tensorflow()
    from fastassign.architecture.saved import read_saved
    from fastassign.targets.deferred import settle

    options = options or LoadOptions()
    saved = read_saved(path)
    library = find_library(options)
    begin = time.perf_counter()
    order = _Order(library, saved, custom_objects or {}, compile, safe_mode, options)
    # Without the pause the garbage collector would look through every object of the model again and again.
    with gc_paused(), deferred_init():
        model, report = _from_archive(order) if saved.format == "archive" else _from_hdf5(order)
    for variable in library.variables(model):
        settle(variable)
    report = replace(report, seconds={**report.seconds, "total": time.perf_counter() - begin})
    if options.on_report is not None:
        options.on_report(report)
    return model


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """What ``load_model`` was asked for."""

    library: ModelLibrary
    saved: SavedModel
    custom_objects: Mapping[str, Any]
    compiled: bool
    safe_mode: bool
    options: LoadOptions


def _from_archive(order: _Order) -> tuple[Any, Report]:
    library, saved = order.library, order.saved
    begin = time.perf_counter()
    model, changes = library.build_archive(
        saved, order.custom_objects, compiled=order.compiled, safe_mode=order.safe_mode
    )
    built = time.perf_counter() - begin
    plan, _ = _plan(model, order, "keras3")
    report = plan.execute()
    library.load_assets(model, saved.path)
    return model, replace(report, upgraded=changes, seconds={**report.seconds, "build": built})


def _from_hdf5(order: _Order) -> tuple[Any, Report]:
    library, saved = order.library, order.saved
    known = library.all_objects(order.custom_objects)
    begin = time.perf_counter()
    model, changes = library.build(saved, known, safe_mode=order.safe_mode)
    built = time.perf_counter() - begin
    plan, catalog = _plan(model, order, "legacy")
    report = plan.execute()
    report = replace(report, upgraded=changes, seconds={**report.seconds, "build": built})
    if not order.compiled:
        return model, report
    if saved.training is None:
        logging.getLogger("absl").warning(
            "No training configuration found in the save file, so the model was *not* compiled. Compile it manually."
        )
        return model, report
    changes = _compile(order, model, saved.training, known)
    left = restore_optimizer(library, model, saved, catalog, plan.matching, order.options)
    return model, replace(report, upgraded=(*report.upgraded, *changes), optimizer_left=left)


def _plan(model: Any, order: _Order, layout: Layout) -> tuple[Plan, Catalog]:
    """Plan the load of the weights, from the very file that the model was built from; return that file too.

    Raises
    ------
    Changed
        It is another file now.
    """
    saved = order.saved
    spec = LoadSpec(model=model, request=Request(), options=order.options, layout=layout)
    plan, catalog = spec.plan_file(saved.path)
    if catalog.identity != saved.identity:
        raise Changed(
            f"{saved.path} was modified or replaced while its model was built",
            file=saved.path,
            hint="load it again",
        )
    return plan, catalog


def _compile(order: _Order, model: Any, training: dict[str, Any], known: Mapping[str, Any]) -> tuple[str, ...]:
    """Compile a model as its file says, and return the changes that the configuration needed."""
    optimizer = training.get("optimizer_config")
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("class_name"), str):
        raise Malformed(
            "training_config does not name an optimizer", file=order.saved.path, hint="load_model(path, compile=False)"
        )
    try:
        return order.library.compile_model(model, training, known)
    except Exception as error:
        raise Mismatch(
            f"the model can't be compiled as it was: {error}",
            file=order.saved.path,
            hint="load_model(path, compile=False), then model.compile(...); or pass missing classes as custom_objects",
        ) from error
