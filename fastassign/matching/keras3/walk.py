"""Keras' walk over the objects of a model, which decides where each stands in a Keras 3 file.

The walk mirrors ``saving_lib._load_state``: the same objects in the same order, under the same names in containers.
Keras 3 and tf_keras differ in which containers they enter, how they count names, and what they do after a failure:
``keras_walk`` and ``tf_keras_walk``. A walk knows nothing of files; a ``Visitor`` hears of each object.
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
    """Hears of every object that a walk comes to."""

    @abstractmethod
    def visit(self, obj: Any, path: str, around: Sequence[str]) -> None:
        """Hear of an object.

        Parameters
        ----------
        obj : object
            The model, a layer, an optimizer, ...
        path : str
            Where the file has it; empty for the model.
        around : sequence of str
            The names of the objects that it is in, from the outermost, without the model's.

        Raises
        ------
        ObjectError
            It does not fit what stands there. In Keras 3 it may be visited again, under another path.
        """

    @abstractmethod
    def visit_again(self, obj: Any, path: str, around: Sequence[str]) -> None:
        """Hear of an object that was visited without an error before, and is also at this path."""

    @abstractmethod
    def has_path(self, path: str) -> bool:
        """Whether the file has anything at or below a path."""

    @abstractmethod
    def lose(self, objects: Sequence[Any], path: str) -> None:
        """Hear of objects that failed because the file lacks the group of the container that they are in."""


class Walk(ABC):
    """One walk over a model.

    Parameters
    ----------
    model : ModelTargets
        The model.
    visitor : Visitor
        Hears of each object.
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
        """Walk inside an object; its name stands around those within, unless it is the model itself."""
        if not path:
            yield
            return
        self._around.append(getattr(obj, "name", ""))
        yield
        self._around.pop()
