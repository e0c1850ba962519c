"""One object of a model, matched to its group of a Keras 3 file.

Where Keras assigns, an assignment is noted; where Keras collects an error, the error's text is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_v3 import VariableGroups
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.assignment import Hook
from fastassign.matching.builder import MatchingBuilder
from fastassign.matching.conversions.converter import reshaped
from fastassign.matching.keras3.names import join, names_of
from fastassign.matching.keras3.renamed_groups import RenamedGroups
from fastassign.matching.keras3.walk import ObjectError, Visitor
from fastassign.matching.selection import Selection, path_below
from fastassign.targets.target import ModelTargets, OwnVariables


class ObjectMatcher(Visitor):
    """Matches each object that a walk visits.

    Parameters
    ----------
    model : ModelTargets
        The model.
    catalog : Catalog
        The file.
    builder : MatchingBuilder
        Gets all results except hooks.
    selection : Selection or None
        The variables to load, and their new paths.
    reshape : bool
        Whether a dataset of the right size and another shape is reshaped.
    """

    def __init__(
        self,
        model: ModelTargets,
        catalog: Catalog,
        builder: MatchingBuilder,
        selection: Selection | None,
        *,
        reshape: bool,
    ) -> None:
        self._model, self._catalog, self._builder = model, catalog, builder
        self._selection, self._reshapes = selection, reshape
        contents, old_layers = catalog.contents, model.library == "keras"
        if selection is not None and selection.renames:
            self._groups: VariableGroups = RenamedGroups(contents, selection, old_layers=old_layers)
        else:
            self._groups = VariableGroups(contents, old_layers=old_layers)
        # Objects with a method of their own: where their group was found, or the first path tried.
        self._hooks: dict[int, Hook] = {}

    @property
    def hooks(self) -> list[Hook]:
        """The objects that load themselves, in the order of the walk."""
        return list(self._hooks.values())

    def visit(self, obj: Any, path: str, around: Sequence[str]) -> None:
        """Match the variables of an object to the datasets of its group."""
        own = self._model.own(obj)
        if own.kind == "none":
            return
        taken = self._taken(obj, path, around, own)
        if taken and not any(taken):
            return
        group = self._groups.find(path)
        names = self._groups.names(group) if group is not None else ()
        if own.kind == "hook":
            if not all(taken):
                raise ObjectError(
                    f"{obj} loads itself, by its own load_own_variables: include or exclude all of it, not a part"
                )
            if own.expected and len(names) != own.expected:
                raise ObjectError(self._model.count_error(obj, len(names)))
            self._hooks[id(obj)] = Hook(obj, path, {name: self._record(group, name) for name in names})
        elif own.kind == "optimizer":
            self._optimizer(obj, own, group, names, taken)
        else:
            if len(names) != own.expected:
                raise ObjectError(self._model.count_error(obj, len(names)))
            self._assign(own, group, taken)
            if own.finalize:
                self._builder.add_finalizers([obj.finalize_state])

    def visit_again(self, obj: Any, path: str, around: Sequence[str]) -> None:
        """Give an object with a method of its own the group of a later path, if the first had none."""
        hook = self._hooks.get(id(obj))
        if hook is not None and not hook.records and self._groups.find(path) is not None:
            self.visit(obj, path, around)

    def has_path(self, path: str) -> bool:
        """Whether the file has anything at or below a path."""
        return self._groups.has_path(path)

    def lose(self, objects: Sequence[Any], path: str) -> None:
        """Note objects that keep their values, with stock's warning."""
        self._builder.warn(
            f"Skipping nested container at '{path}': no "
            "matching group found in the saved file. This "
            "usually means the file was saved with a Keras "
            "version that did not serialize sublayers nested "
            "inside containers. Affected layers will retain "
            "their freshly-initialized weights."
        )
        for obj in objects:
            self._builder.skip(f"{obj}: no group {path} in the file")

    def _taken(self, obj: Any, path: str, around: Sequence[str], own: OwnVariables) -> list[bool]:
        """Tell which variables of an object are to be loaded; empty where there is no selection."""
        if self._selection is None:
            return []
        name, where = str(getattr(obj, "name", "")), names_of(around, obj, path)
        variables = _variables(obj, own)
        if not variables:
            return [self._selection.takes(where, "", path)]
        taken = []
        for i, (whole, variable) in enumerate(variables):
            below = path_below(name, whole).partition("/")[2]
            taken.append(self._selection.takes(join(where, below), whole, f"{join(path, 'vars')}/{i}"))
            if not taken[-1]:
                self._builder.leave_out(whole, variable)
        return taken

    def _optimizer(
        self, obj: Any, own: OwnVariables, group: str | None, names: Sequence[str], taken: Sequence[bool]
    ) -> None:
        if len(names) == own.expected:
            self._assign(own, group, taken)
            return
        text = (
            f"Skipping variable loading for optimizer '{obj.name}', "
            f"because it has {own.expected} variables whereas "
            f"the saved optimizer has {len(names)} variables. "
        )
        if not own.expected:
            text += "This is likely because the optimizer has not been called/built yet."
        self._builder.warn(text, "warnings" if self._model.library == "keras" else "absl")
        self._builder.skip(f"optimizer {obj.name}: {own.expected} variables, {len(names)} saved")

    def _assign(self, own: OwnVariables, group: str | None, taken: Sequence[bool]) -> None:
        for index, target in enumerate(own.variables):
            if taken and not taken[index]:
                continue
            record = self._record(group, str(index))
            value = reshaped(record, target.shape) if self._reshapes else record
            if value.shape != target.shape:
                raise ObjectError(self._model.shape_error(target, record.shape))
            try:
                self._builder.assign(value, target)
            except Mismatch as error:
                raise ObjectError(str(error)) from error

    def _record(self, group: str | None, name: str) -> TensorRecord:
        record = self._catalog.find(self._groups.key(group, name)) if group is not None else None
        if record is None:
            raise ObjectError(repr(name))  # the text of a KeyError
        return record


def _variables(obj: Any, own: OwnVariables) -> list[tuple[str, Any]]:
    """Return names and variables that an object takes values for."""
    if own.kind != "hook":
        return [(target.name, target.variable) for target in own.variables]
    # Lookup tables of tf_keras are among the weights too, without a name.
    named = [(getattr(v, "path", None) or getattr(v, "name", None), v) for v in getattr(obj, "weights", ())]
    return [(str(name), v) for name, v in named if name]
