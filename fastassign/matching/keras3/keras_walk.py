"""The walk of Keras 3."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastassign.matching.assignment import Failure
from fastassign.matching.keras3.names import UniqueNames, items, join
from fastassign.matching.keras3.walk import ObjectError, Visitor, Walk
from fastassign.targets.target import ModelTargets

# The objects that failed and did not succeed under another path, by ``id``, in order.
_Failures = dict[int, Failure]


class KerasWalk(Walk):
    """Goes on past an object that failed, and tries it again under every other path that leads to it.

    Parameters
    ----------
    model, visitor
        See ``Walk``.
    objects_to_skip : iterable
        Objects that are not visited, nor any inside them.
    """

    def __init__(self, model: ModelTargets, visitor: Visitor, objects_to_skip: Iterable[Any] = ()) -> None:
        super().__init__(model, visitor)
        self._visited |= {id(obj) for obj in objects_to_skip}

    def run(self) -> list[Failure]:
        """Visit all objects, past those that fail."""
        failures: _Failures = {}
        self._object(self._model.model, "", failures)
        return list(failures.values())

    def _object(self, obj: Any, path: str, failures: _Failures) -> None:
        if id(obj) in self._visited:
            self._visitor.visit_again(obj, path, self._around)
            return
        try:
            self._visitor.visit(obj, path, self._around)
            failed = False
        except ObjectError as error:
            failures[id(obj)] = Failure(obj, str(error))
            failed = True
        before = len(failures)
        with self._inside(obj, path):
            for name, child in self._model.children(obj):
                kind = self._model.node_kind(child)
                if kind == "saveable":
                    self._object(child, join(path, name), failures)
                elif kind == "container":
                    self._container(child, join(path, name), failures, set())
        if not failed:
            if len(failures) <= before:
                self._visited.add(id(obj))
            failures.pop(id(obj), None)

    def _container(self, container: Any, path: str, failures: _Failures, seen: set[int]) -> None:
        if id(container) in seen:
            return
        seen.add(id(container))
        names = UniqueNames()
        kind_of = self._model.node_kind
        for item in items(container):
            kind = kind_of(item)
            if kind == "saveable":
                self._object(item, join(path, names.unique(self._model.container_name(item))), failures)
            elif kind == "container" and self._model.nested_containers:
                name = names.unique("container")
                # TensorFlow keeps a list of (name, variable) tuples on every layer: nothing to descend into.
                if any(map(kind_of, items(item))):
                    self._nested(item, join(path, name), failures, seen)

    def _nested(self, container: Any, path: str, failures: _Failures, seen: set[int]) -> None:
        if self._visitor.has_path(path):
            self._container(container, path, failures, seen)
            return
        # Files from before Keras 3.15, which began to save containers inside containers, lack the group: the objects in
        # there keep their values, with a warning. Stock also warns about containers that only mirror a layer that
        # failed under its own path already (`_operations_by_depth`); that warning adds nothing and is not given.
        inside: _Failures = {}
        self._container(container, path, inside, seen)
        lost = [failure.obj for key, failure in inside.items() if key not in failures]
        if lost:
            self._visitor.lose(lost, path)
