"""Keras' walk over the objects of a model, which determines the path of each in a Keras 3 file.

The walk mirrors ``saving_lib._load_state``: the same objects in the same order, under the same names in containers.
Keras 3 (``keras_walk``) and tf_keras (``tf_keras_walk``) enter different containers, count names differently, and
react differently to a failure. A walk knows nothing about files; it passes each object to a ``Visitor``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastassign.matching.assignment import Failure
from fastassign.targets.target import ModelTargets


class ObjectError(Exception):
    """An object does not fit; the text is the one that stock's ``load_own_variables`` would raise."""


class Visitor(ABC):
    """Gets every object of a walk."""

    @abstractmethod
    def visit(self, obj: Any, path: str, around: Sequence[str]) -> None:
        """Take an object.

        Parameters
        ----------
        obj : object
            The model, a layer, an optimizer, ...
        path : str
            Its path in the file; empty for the model.
        around : sequence of str
            The names of the objects that it is in, from the outermost, without the model's.

        Raises
        ------
        ObjectError
            It does not fit its group of the file. In Keras 3 it may be visited again, under another path.
        """

    @abstractmethod
    def visit_again(self, obj: Any, path: str, around: Sequence[str]) -> None:
        """Take an object again that was visited without an error before, under another path."""

    @abstractmethod
    def has_path(self, path: str) -> bool:
        """Whether the file has anything at or below a path."""

    @abstractmethod
    def lose(self, objects: Sequence[Any], path: str) -> None:
        """Take objects that failed because the file lacks the group of the container around them."""


class Walk(ABC):
    """One walk over a model.

    Parameters
    ----------
    model : ModelTargets
        The model.
    visitor : Visitor
        Gets each object.
    """

    def __init__(self, model: ModelTargets, visitor: Visitor) -> None:
        self._model, self._visitor = model, visitor
        # Names of the objects around the one that the walk is at, from the outermost; the model's is not among them.
        self._around: list[str] = []
        self._visited: set[int] = set()

    @abstractmethod
    def run(self) -> list[Failure]:
        """Visit all objects, and return those that failed and did not succeed under another path, in order."""

    @contextmanager
    def _inside(self, obj: Any, path: str) -> Iterator[None]:
        """Walk inside an object: its name counts among those around, unless it is the model itself."""
        if not path:
            yield
            return
        self._around.append(getattr(obj, "name", ""))
        yield
        self._around.pop()
