"""Keras 3 files, by the path that Keras' walk takes to each object.

The walk mirrors ``saving_lib._load_state`` of Keras 3 and of tf_keras: same objects in the same order, same
names in containers, same second chances for an object that failed under one path and is reached by another.
Where Keras assigns, an assignment is noted here; where it collects an error, its text is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_v3 import VariableGroups
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch, MissingGroup
from fastassign.matching.assignment import Failure, Hook, Matching, Notice, failure_text
from fastassign.matching.conversions.converter import reshaped
from fastassign.matching.keras3.renamed_groups import RenamedGroups
from fastassign.matching.selection import Selection, path_below
from fastassign.targets.target import ModelTargets, OwnVariables


def match_by_path(
    model: ModelTargets,
    catalog: Catalog,
    *,
    skip_mismatch: bool,
    objects_to_skip: Iterable[Any],
    selection: Selection | None = None,
    reshape: bool = False,
) -> Matching:
    """Match the groups of a Keras 3 weights file to the objects of a model.

    Parameters
    ----------
    model : ModelTargets
        The model.
    catalog : Catalog
        The file.
    skip_mismatch : bool
        Whether objects that do not fit are left as they are, with stock's warning.
    objects_to_skip : iterable
        Layers that keep their values.
    selection : Selection, optional
        What to load, and under which paths it stands in the file.
    reshape : bool
        Whether a dataset of the right size and another shape is reshaped.

    Raises
    ------
    Mismatch
        Objects could not be matched; the text is stock's.
    """
    walk = Walk(model, catalog, skip_mismatch, selection, reshape=reshape)
    if model.library == "keras":
        walk.run_keras3({id(obj) for obj in objects_to_skip})
    else:
        walk.run_tf_keras()
    return walk.matching


class _ObjectError(Exception):
    """What stock's ``load_own_variables`` would have raised, as its text."""


@dataclass(slots=True)
class _Failures:
    """The objects that failed and did not succeed under another path, in order, with the error."""

    by_id: dict[int, Failure] = field(default_factory=dict)


class Walk:
    """Keras' walk over a model, with what is found in a file for each object."""

    def __init__(
        self,
        model: ModelTargets,
        catalog: Catalog,
        skip_mismatch: bool,
        selection: Selection | None = None,
        *,
        reshape: bool = False,
    ) -> None:
        self.matching = Matching(library=model.library, layout="keras3")
        self._model, self._catalog, self._skip_mismatch = model, catalog, skip_mismatch
        self._selection, self._reshapes = selection, reshape
        contents, old = catalog.contents, model.library == "keras"
        if selection is not None and selection.renames:
            self._groups: VariableGroups = RenamedGroups(contents, selection, old_layers=old)
        else:
            self._groups = VariableGroups(contents, old_layers=old)
        # Names of the objects from the model, which is not among them, to the one that the walk is at.
        self._chain: list[str] = []
        self._visited: set[int] = set()
        # Objects with a method of their own: where their group was found, or the first path tried.
        self._hooks: dict[int, Hook] = {}

    def visit_all(self) -> None:
        """Walk over the whole model, whatever fails."""
        if self._model.library == "keras":
            self._object(self._model.model, "", _Failures())
        else:
            self._object_tf_keras(self._model.model, "")

    # Keras 3.

    def run_keras3(self, visited: set[int]) -> None:
        """Walk as Keras 3 does, past what fails; ``visited`` are the objects to pass over."""
        self._visited |= visited
        failures = _Failures()
        self._object(self._model.model, "", failures)
        self.matching.hooks.extend(self._hooks.values())
        self._check_selection()
        if not failures.by_id:
            return
        failed = list(failures.by_id.values())
        if not self._skip_mismatch:
            raise Mismatch(failure_text(failed), hint=self._hint())
        self.matching.failures += failed

    def _object(self, obj: Any, path: str, failures: _Failures) -> None:
        if id(obj) in self._visited:
            self._offer_again(obj, path)
            return
        try:
            self._own(obj, path)
            failed = False
        except _ObjectError as error:
            failures.by_id[id(obj)] = Failure(obj, str(error))
            failed = True
        before = len(failures.by_id)
        with self._inside(obj, path):
            for name, child in self._model.children(obj):
                kind = self._model.node_kind(child)
                if kind == "saveable":
                    self._object(child, _join(path, name), failures)
                elif kind == "container":
                    self._container(child, _join(path, name), failures, set())
        if not failed:
            if len(failures.by_id) <= before:
                self._visited.add(id(obj))
            failures.by_id.pop(id(obj), None)

    def _container(self, container: Any, path: str, failures: _Failures, seen: set[int]) -> None:
        if id(container) in seen:
            return
        seen.add(id(container))
        names = _Names()
        kind_of = self._model.node_kind
        for item in _items(container):
            kind = kind_of(item)
            if kind == "saveable":
                self._object(item, _join(path, names.unique(self._model.container_name(item))), failures)
            elif kind == "container" and self._model.nested_containers:
                name = names.unique("container")
                # TensorFlow keeps a list of (name, variable) tuples on every layer: nothing to descend into.
                if any(map(kind_of, _items(item))):
                    self._nested(item, _join(path, name), failures, seen)

    def _nested(self, container: Any, path: str, failures: _Failures, seen: set[int]) -> None:
        if self._groups.has_path(path):
            self._container(container, path, failures, seen)
            return
        # Files from before containers inside containers were saved (Keras before 3.15) lack the group: what is in
        # there keeps its values, with a warning. Stock also warns about containers that only mirror a layer
        # that failed under its own path already (`_operations_by_depth`); that warning says nothing and is left out.
        failures_inside = _Failures()
        self._container(container, path, failures_inside, seen)
        lost = [failure.obj for key, failure in failures_inside.by_id.items() if key not in failures.by_id]
        if lost:
            text = (
                f"Skipping nested container at '{path}': no "
                "matching group found in the saved file. This "
                "usually means the file was saved with a Keras "
                "version that did not serialize sublayers nested "
                "inside containers. Affected layers will retain "
                "their freshly-initialized weights."
            )
            self.matching.notices.append(Notice(text))
            self.matching.skipped += [f"{obj}: no group {path} in the file" for obj in lost]

    # tf_keras.

    def run_tf_keras(self) -> None:
        """Walk as tf_keras does, to the first that fails."""
        if not self._groups.has_path("vars"):
            raise MissingGroup(
                "Unable to synchronously open object (object 'vars' doesn't exist)",
                file=self._catalog.path,
                hint=self._hint(),
            )
        self._object_tf_keras(self._model.model, "")
        self.matching.hooks.extend(self._hooks.values())
        self._check_selection()

    def _object_tf_keras(self, obj: Any, path: str) -> None:
        if id(obj) in self._visited:
            return
        try:
            self._own(obj, path)
        except _ObjectError as error:
            if not self._skip_mismatch:
                raise Mismatch(str(error), hint=self._hint()) from error
            self.matching.failures.append(Failure(obj, str(error)))
        self._visited.add(id(obj))
        with self._inside(obj, path):
            for name, child in self._model.children(obj):
                kind = self._model.node_kind(child)
                if kind == "saveable":
                    self._object_tf_keras(child, _join(path, name))
                elif kind == "container":
                    self._container_tf_keras(child, _join(path, name))

    def _container_tf_keras(self, container: Any, path: str) -> None:
        names = _Names()
        for item in _items(container):
            # Objects met before do not count towards the names of the others, unlike in Keras 3.
            if self._model.node_kind(item) == "saveable" and id(item) not in self._visited:
                self._object_tf_keras(item, _join(path, names.unique(self._model.container_name(item))))

    # One object.

    @contextmanager
    def _inside(self, obj: Any, path: str) -> Iterator[None]:
        if not path:  # the model itself
            yield
            return
        self._chain.append(getattr(obj, "name", ""))
        yield
        self._chain.pop()

    def _check_selection(self) -> None:
        if self._selection is not None:
            self._selection.check()

    def _where(self, obj: Any, path: str) -> str:
        """Return the names of the layers around an object, and its own."""
        return "/".join(filter(None, [*self._chain, str(getattr(obj, "name", "")) if path else ""]))

    def _is_taken(self, obj: Any, path: str, own: OwnVariables) -> list[bool]:
        """Tell which variables of an object are to be loaded, by all the names that they go by."""
        if self._selection is None:
            return []
        name, where = str(getattr(obj, "name", "")), self._where(obj, path)
        variables = _variables(obj, own)
        if not variables:
            return [self._selection.takes(where, "", path)]
        taken = []
        for i, (whole, variable) in enumerate(variables):
            below = path_below(name, whole).partition("/")[2]
            taken.append(self._selection.takes(_join(where, below), whole, f"{_join(path, 'vars')}/{i}"))
            if not taken[-1]:
                self.matching.leave_out(whole, variable)
        return taken

    def _own(self, obj: Any, path: str) -> None:
        own = self._model.own(obj)
        if own.kind == "none":
            return
        taken = self._is_taken(obj, path, own)
        if taken and not any(taken):
            return
        group = self._groups.find(path)
        names = self._groups.names(group) if group is not None else ()
        if own.kind == "hook":
            if not all(taken):
                raise _ObjectError(f"{obj} loads itself, by its own load_own_variables: all of it or nothing")
            if own.expected and len(names) != own.expected:
                raise _ObjectError(self._model.count_error(obj, len(names)))
            self._hooks[id(obj)] = Hook(obj, path, {name: self._record(group, name) for name in names})
        elif own.kind == "optimizer":
            self._optimizer(obj, own, group, names, taken)
        else:
            if len(names) != own.expected:
                raise _ObjectError(self._model.count_error(obj, len(names)))
            self._assign(own, group, taken)
            if own.finalize:
                self.matching.finalizers.append(obj.finalize_state)

    def _optimizer(
        self, obj: Any, own: OwnVariables, group: str | None, names: tuple[str, ...], taken: Sequence[bool]
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
        self.matching.notices.append(Notice(text, "warnings" if self._model.library == "keras" else "absl"))
        self.matching.skipped.append(f"optimizer {obj.name}: {own.expected} variables, {len(names)} saved")

    def _assign(self, own: OwnVariables, group: str | None, taken: Sequence[bool]) -> None:
        for index, target in enumerate(own.variables):
            if taken and not taken[index]:
                continue
            record = self._record(group, str(index))
            value = reshaped(record, target.shape) if self._reshapes else record
            if value.shape != target.shape:
                raise _ObjectError(self._model.shape_error(target, record.shape))
            try:
                self.matching.assign(value, target)
            except Mismatch as error:
                raise _ObjectError(str(error)) from error

    def _record(self, group: str | None, name: str) -> TensorRecord:
        record = self._catalog.find(self._groups.key(group, name)) if group is not None else None
        if record is None:
            raise _ObjectError(repr(name))  # the text of a KeyError
        return record

    def _offer_again(self, obj: Any, path: str) -> None:
        """Give an object with a method of its own the group of a later path, if the first had none."""
        hook = self._hooks.get(id(obj))
        if hook is not None and not hook.records and self._groups.find(path) is not None:
            self._own(obj, path)

    def _hint(self) -> str:
        catalog = self._catalog
        if catalog.format == "legacy":
            return f"{catalog.path.name} has the legacy layout: give it a name that ends in .h5 but not in .weights.h5"
        return "skip_mismatch=True loads the rest and leaves these objects as they are"


class _Names:
    """The names that a container gives to its items."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def unique(self, name: str) -> str:
        if name not in self._used:
            self._used[name] = 0
            return name
        self._used[name] += 1
        return f"{name}_{self._used[name]}"


def _variables(obj: Any, own: OwnVariables) -> list[tuple[str, Any]]:
    """Return names and variables that an object takes values for."""
    if own.kind != "hook":
        return [(target.name, target.variable) for target in own.variables]
    # Lookup tables of tf_keras stand among the weights too, without a name.
    named = [(getattr(v, "path", None) or getattr(v, "name", None), v) for v in getattr(obj, "weights", ())]
    return [(str(name), v) for name, v in named if name]


def _items(container: Any) -> Any:
    return list(container.values()) if isinstance(container, dict) else container


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
