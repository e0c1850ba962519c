"""``load_model``: from a file to a model that predicts, and trains on."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from fastassign.architecture.optimizer import pairs
from fastassign.architecture.slots import read_state
from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import optimizer_tensors, read_legacy
from fastassign.errors import Changed, FastAssignError, Malformed, Mismatch
from fastassign.gc_pause import gc_paused
from fastassign.matching.match import Request
from fastassign.options import LoadOptions
from fastassign.pipeline import LoadSpec
from fastassign.plan import Plan
from fastassign.report import Report
from fastassign.targets.discover import check_tensorflow
from fastassign.targets.target import Layout
from fastassign.verbs import assign

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
    """Load a whole model: architecture, weights, and how far its training was.

    Files of older versions are brought up to the running library (``docs/load_model.md`` lists by what rules), weights
    and the state of the optimizer are found by name, and random initial values that the file replaces are not made.

    Parameters
    ----------
    path : str or os.PathLike
        A whole-model ``.h5`` file of Keras 1 to 3 or tf_keras, or a ``.keras`` archive. What is inside decides.
    custom_objects : mapping of str to object, optional
        Classes and functions that the model uses and Keras does not have, by the names in the file.
    compile : bool
        Whether the model is compiled as it was, and its optimizer gets its state back.
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
        The file holds no model, or one of unknown classes, which are all named; or its weights do not fit.
    Refused (ValueError)
        The file holds Python code, or asks for something else that the policy does not allow.
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
    library = _library(options)
    begin = time.perf_counter()
    # The garbage collector would look through all that a model is made of, again and again.
    with gc_paused(), deferred_init():
        if saved.format == "archive":
            model, report = _from_archive(library, saved, custom_objects or {}, compile, safe_mode, options)
        else:
            model, report = _from_hdf5(library, saved, custom_objects or {}, compile, safe_mode, options)
    for variable in library.variables(model):
        settle(variable)
    report = replace(report, seconds={**report.seconds, "total": time.perf_counter() - begin})
    if options.on_report is not None:
        options.on_report(report)
    return model


@contextmanager
def deferred_init() -> Iterator[None]:
    """Build models without making initial values: each variable gets its own when it is used first, or loaded.

    Around code that builds a model of Keras 3 or tf_keras whose weights come from a file:

    >>> with fa.deferred_init():  # doctest: +SKIP
    ...     model = build()
    >>> fa.load_weights(model, path)  # doctest: +SKIP

    What the file does not cover gets the initial value that its own initialiser makes, at the first use. Initialisers
    of Keras 3 hold their seeds, so that the values are those that building without this would give; tf_keras draws them
    from TensorFlow's global generator, where the order of the draws matters.

    Variables of a ``tf.distribute`` strategy, of TensorFlow 1 graphs, with values given as arrays, or under another
    ``tf.variable_creator_scope`` are made as ever. Holds for the thread that enters it.
    """
    check_tensorflow()
    from fastassign.targets.deferred import deferred

    with deferred():
        yield


def _from_archive(
    library: ModuleType,
    saved: SavedModel,
    custom_objects: Mapping[str, Any],
    compiled: bool,
    safe_mode: bool,
    options: LoadOptions,
) -> tuple[Any, Report]:
    begin = time.perf_counter()
    model, changes = library.build_archive(saved, custom_objects, compiled=compiled, safe_mode=safe_mode)
    built = time.perf_counter() - begin
    report = _plan(model, saved, options, "keras3")[0].execute()
    library.load_assets(model, saved.path)
    return model, replace(report, upgraded=changes, seconds={**report.seconds, "build": built})


def _from_hdf5(
    library: ModuleType,
    saved: SavedModel,
    custom_objects: Mapping[str, Any],
    compiled: bool,
    safe_mode: bool,
    options: LoadOptions,
) -> tuple[Any, Report]:
    known = library.all_objects(custom_objects)
    begin = time.perf_counter()
    model, changes = library.build(saved, known, safe_mode=safe_mode)
    built = time.perf_counter() - begin
    plan, catalog = _plan(model, saved, options, "legacy")
    report = plan.execute()
    report = replace(report, upgraded=changes, seconds={**report.seconds, "build": built})
    return model, _train_on(library, model, saved, known, (plan, catalog), report, options) if compiled else report


def _plan(model: Any, saved: SavedModel, options: LoadOptions, layout: Layout) -> tuple[Plan, Catalog]:
    """Plan the load of the weights, from the very file that the model was built from."""
    plan, catalog = LoadSpec(model=model, request=Request(), options=options, layout=layout).plan_file(saved.path)
    if catalog.identity != saved.identity:
        raise Changed(
            f"{saved.path} was modified or replaced while its model was built",
            file=saved.path,
            hint="load it again",
        )
    return plan, catalog


def _library(options: LoadOptions) -> ModuleType:
    # What is imported here imports TensorFlow and one of the libraries.
    name: Literal["keras", "tf_keras"] = options.library or (
        # What `tf.keras` is in this process.
        "tf_keras" if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in {"true", "1"} else "keras"
    )
    return importlib.import_module(f"fastassign.architecture.{'keras3' if name == 'keras' else name}")


def _train_on(
    library: ModuleType,
    model: Any,
    saved: SavedModel,
    known: Mapping[str, Any],
    planned: tuple[Plan, Catalog],
    report: Report,
    options: LoadOptions,
) -> Report:
    """Compile a model, and give its optimizer the state that it had."""
    if saved.training is None:
        logging.getLogger("absl").warning(
            "No training configuration found in the save file, so the model was *not* compiled. Compile it manually."
        )
        return report
    optimizer = saved.training.get("optimizer_config")
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("class_name"), str):
        raise Malformed("training_config names no optimizer", file=saved.path, hint="load_model(path, compile=False)")
    try:
        changes = library.compile_model(model, saved.training, known)
    except Exception as error:
        raise Mismatch(
            f"the model can't be compiled as it was: {error}",
            file=saved.path,
            hint="load_model(path, compile=False), then model.compile(...); or pass what is missing as custom_objects",
        ) from error
    report = replace(report, upgraded=(*report.upgraded, *changes))
    left = _restore(library, model, saved, planned, options)
    return replace(report, optimizer_left=left)


def _restore(
    library: ModuleType, model: Any, saved: SavedModel, planned: tuple[Plan, Catalog], options: LoadOptions
) -> tuple[str, ...]:
    """Assign the optimizer's tensors; return those that have no place."""
    plan, catalog = planned
    if model.optimizer is None:
        return ()
    try:
        tensors = optimizer_tensors(catalog.contents)
    except FastAssignError as error:
        raise error.at(saved.path) from None
    if not tensors:
        return ()
    names = [name for name, _ in tensors]
    entries = [catalog[key] for _, key in tensors]
    shapes = [entry.record.shape for entry in entries]
    updated = library.build_optimizer(model)
    own = library.optimizer_variables(model)
    chosen = _by_own_names(own, names, shapes)
    if chosen is None:
        state = read_state(
            names,
            shapes,
            str((saved.training or {}).get("optimizer_config", {}).get("class_name", "")),
            _saved_names(plan, catalog, updated),
            [tuple(variable.shape) for variable in updated],
            saved.keras_version,
        )
        # What Keras 2 wrote in place of slots that an optimizer has not, and single numbers, say nothing.
        wrong = [position for position in state.left if shapes[position] not in {(), (1,)}]
        if wrong:
            raise Mismatch(
                f"the state of the optimizer does not fit: {names[wrong[0]]} of shape {shapes[wrong[0]]} is no slot of "
                f"{type(model.optimizer).__name__} for a variable of this model",
                file=saved.path,
                tensor=tensors[wrong[0]][1],
                hint="load_model(path, compile=False), then model.compile(...)",
            )
        chosen = list(pairs(model.optimizer, updated, state))
    assign([(variable, entries[position]) for variable, position in chosen], options=replace(options, on_report=None))
    used = {position for _, position in chosen}
    return tuple(name for position, name in enumerate(names) if position not in used)


def _by_own_names(own: list[Any], names: list[str], shapes: list[tuple[int, ...]]) -> list[tuple[Any, int]] | None:
    """Pair variables and tensors that are called the same; ``None`` where not all are."""
    by_name = {str(getattr(variable, "path", None) or variable.name).removesuffix(":0"): variable for variable in own}
    found = [by_name.get(name.removesuffix(":0")) for name in names]
    if len(by_name) < len(own) or any(variable is None for variable in found):
        return None
    if any(tuple(variable.shape) != shape for variable, shape in zip(found, shapes, strict=True)):  # type: ignore[union-attr]
        return None
    return [(variable, position) for position, variable in enumerate(found)]


def _saved_names(plan: Plan, catalog: Catalog, updated: list[Any]) -> dict[str, int]:
    """Return the number of each variable that the optimizer updates, by its name in the file."""
    numbers = {id(variable): number for number, variable in enumerate(updated)}
    by_key = {each.record.key: numbers.get(id(each.target.variable)) for each in plan.matching.assignments.values()}
    layout = read_legacy(catalog.contents)
    found = {}
    for layer in (*layout.layers, *([layout.top_level] if layout.top_level else [])):
        for name, key in layer.weights:
            number = by_key.get(key)
            if number is not None:
                found[name.removesuffix(":0")] = number
    return found
