"""The walk of tf_keras."""

from __future__ import annotations

from typing import Any

from fastassign.matching.assignment import Failure
from fastassign.matching.keras3.names import UniqueNames, items, join
from fastassign.matching.keras3.walk import ObjectError, Visitor, Walk
from fastassign.targets.target import ModelTargets


class TfKerasWalk(Walk):
    """Visits every object once; the first that fails ends the walk, unless failures are skipped.

    Parameters
    ----------
    model, visitor
        See ``Walk``.
    skip_failures : bool
        Whether the walk goes on past an object that failed.
    """

    def __init__(self, model: ModelTargets, visitor: Visitor, *, skip_failures: bool) -> None:
        super().__init__(model, visitor)
        self._skip_failures = skip_failures
        self._failures: list[Failure] = []

    def run(self) -> list[Failure]:
        """Visit all objects, or those up to the first that fails.

        Raises
        ------
        ObjectError
            One failed, and failures are not skipped.
        """
        self._object(self._model.model, "")
        return self._failures

    def _object(self, obj: Any, path: str) -> None:
        if id(obj) in self._visited:
            return
        try:
            self._visitor.visit(obj, path, self._around)
        except ObjectError as error:
            if not self._skip_failures:
                raise
            self._failures.append(Failure(obj, str(error)))
        self._visited.add(id(obj))
        with self._inside(obj, path):
            for name, child in self._model.children(obj):
                kind = self._model.node_kind(child)
                if kind == "saveable":
                    self._object(child, join(path, name))
                elif kind == "container":
                    self._container(child, join(path, name))

    def _container(self, container: Any, path: str) -> None:
        names = UniqueNames()
        for item in items(container):
            # Objects met before do not count towards the names of the others, unlike in Keras 3.
            if self._model.node_kind(item) == "saveable" and id(item) not in self._visited:
                self._object(item, join(path, names.unique(self._model.container_name(item))))
