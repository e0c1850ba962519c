"""An optimizer's state, restored from a legacy file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastassign.architecture.library import ModelLibrary
from fastassign.architecture.optimizer import pairs
from fastassign.architecture.slots import read_state
from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import optimizer_tensors, read_legacy
from fastassign.errors import FastAssignError, Mismatch
from fastassign.matching.assignment import Matching
from fastassign.options import LoadOptions
from fastassign.verbs import assign

if TYPE_CHECKING:
    from fastassign.architecture.saved import SavedModel


def restore_optimizer(
    library: ModelLibrary,
    model: Any,
    saved: SavedModel,
    catalog: Catalog,
    matching: Matching,
    options: LoadOptions,
) -> tuple[str, ...]:
    """Give the optimizer of a compiled model the state that it had.

    Parameters
    ----------
    library, model
        The model, and the library that it belongs to.
    saved, catalog
        The model as its file describes it, and the file.
    matching : Matching
        Which weight of the file went into which variable: tells the names that the variables have there.
    options : LoadOptions
        How the values are loaded.

    Returns
    -------
    tuple of str
        The names of the saved tensors that no variable of the optimizer takes.

    Raises
    ------
    Mismatch
        A saved tensor is not a slot of this optimizer.
    Malformed, Refused
        The file lists a tensor that it does not have, or that the policy does not allow.
    """
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
    chosen = _by_own_names(library.optimizer_variables(model), names, shapes)
    if chosen is None:
        state = read_state(
            names,
            shapes,
            str((saved.training or {}).get("optimizer_config", {}).get("class_name", "")),
            _saved_names(catalog, matching, updated),
            [tuple(variable.shape) for variable in updated],
            saved.keras_version,
        )
        # Single numbers say nothing, nor do the stand-ins that Keras 2 wrote for slots that an optimizer lacks.
        wrong = [position for position in state.left if shapes[position] not in {(), (1,)}]
        if wrong:
            raise Mismatch(
                f"the state of the optimizer does not fit: {names[wrong[0]]} of shape {shapes[wrong[0]]} is not a slot "
                f"of {type(model.optimizer).__name__} for a variable of this model",
                file=saved.path,
                tensor=tensors[wrong[0]][1],
                hint="load_model(path, compile=False), then model.compile(...)",
            )
        chosen = list(pairs(model.optimizer, updated, state))
    assign([(variable, entries[position]) for variable, position in chosen], options=replace(options, on_report=None))
    used = {position for _, position in chosen}
    return tuple(name for position, name in enumerate(names) if position not in used)


def _by_own_names(
    own: Sequence[Any], names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> list[tuple[Any, int]] | None:
    """Pair variables and positions of the tensors with the same names; ``None`` unless all have one."""
    by_name = {str(getattr(variable, "path", None) or variable.name).removesuffix(":0"): variable for variable in own}
    if len(by_name) < len(own):
        return None
    found = []
    for position, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        variable = by_name.get(name.removesuffix(":0"))
        if variable is None or tuple(variable.shape) != shape:
            return None
        found.append((variable, position))
    return found


def _saved_names(catalog: Catalog, matching: Matching, updated: Sequence[Any]) -> dict[str, int]:
    """Return the number of each variable that the optimizer updates, by its name in the file."""
    numbers = {id(variable): number for number, variable in enumerate(updated)}
    by_key = {each.record.key: numbers.get(id(each.target.variable)) for each in matching.assignments.values()}
    saved = read_legacy(catalog.contents)
    found = {}
    for layer in (*saved.layers, *([saved.top_level] if saved.top_level else [])):
        for name, key in layer.weights:
            number = by_key.get(key)
            if number is not None:
                found[name.removesuffix(":0")] = number
    return found
