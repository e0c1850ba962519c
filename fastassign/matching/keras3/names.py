"""The names and paths that Keras' walk gives to objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class UniqueNames:
    """The names that a container gives to its items: each class in snake case, counted from the second on."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """Return the name for the next item of a class."""
        if name not in self._used:
            self._used[name] = 0
            return name
        self._used[name] += 1
        return f"{name}_{self._used[name]}"


def items(container: Any) -> Any:
    """Return the items of a list, tuple or set, or the values of a mapping."""
    return list(container.values()) if isinstance(container, dict) else container


def join(path: str, name: str) -> str:
    """Return a path with one more part; either may be empty.

    >>> join("", "layers"), join("layers", "dense"), join("layers", "")
    ('layers', 'layers/dense', 'layers/')
    """
    return f"{path}/{name}" if path else name


def names_of(around: Sequence[str], obj: Any, path: str) -> str:
    """Return the names of the layers around an object, and its own, as one path; the model's own is empty."""
    return "/".join(filter(None, [*around, str(getattr(obj, "name", "")) if path else ""]))
