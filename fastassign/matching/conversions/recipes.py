"""Recipes: the arithmetic that makes an array of a variable's shape from arrays of a file.

A recipe knows its shape before anything is read, and fills memory that it is given. Transposed, flipped or reshaped
views of that memory take the values in the order of the file, so that nothing is held twice; the only temporaries are
those of ``Recipe.spare_bytes``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fastassign.catalog.records import TensorRecord

_Array = np.ndarray[Any, Any]
_View = Callable[[_Array], _Array]
_Fill = Callable[[_Array, Sequence[_Array]], None]


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How one array is made of arrays of the file.

    Attributes
    ----------
    shape : tuple of int
        The shape that comes out.
    records : tuple of TensorRecord
        The arrays of the file that it is made from.
    steps : tuple of str
        The arithmetic in words; empty if the array is a record as it is.
    spare_bytes : int
        Memory that ``fill`` takes for temporaries.
    """

    shape: tuple[int, ...]
    records: tuple[TensorRecord, ...]
    steps: tuple[str, ...]
    spare_bytes: int
    _base: _Fill
    # Each view gives the memory of a step's result the form of that step's input; the last step's comes first.
    _views: tuple[_View, ...] = ()

    @property
    def key(self) -> str:
        """The keys of the records."""
        return ", ".join(record.key for record in self.records)

    @property
    def nbytes(self) -> int:
        """Bytes that are read for it."""
        return sum(record.nbytes for record in self.records)

    def fill(self, out: _Array, arrays: Sequence[_Array]) -> None:
        """Fill memory with the result, cast to its dtype.

        Parameters
        ----------
        out : numpy.ndarray
            Of the recipe's shape, in C order.
        arrays : sequence of numpy.ndarray
            The values of ``records``.
        """
        for view in self._views:
            out = view(out)
        self._base(out, arrays)

    def transposed(self, *axes: int) -> Recipe:
        """Return the recipe of ``numpy.transpose``; the number of axes has to be right."""
        back = tuple(axes.index(axis) for axis in range(len(axes)))
        shape = tuple(self.shape[axis] for axis in axes)
        return self._then(shape, f"transpose {axes}", partial(np.transpose, axes=back))

    def without_axis(self, axis: int) -> Recipe:
        """Return the recipe of the array without an axis of length 1."""
        shape = self.shape[:axis] + self.shape[axis + 1 :]
        return self._then(shape, f"drop axis {axis}", partial(np.expand_dims, axis=axis))

    def flipped(self) -> Recipe:
        """Return the recipe of a kernel that is flipped in all its spatial axes, which are all but two."""
        return self._then(self.shape, "flip", partial(np.flip, axis=tuple(range(len(self.shape) - 2))))

    def reshaped(self, shape: tuple[int, ...]) -> Recipe:
        """Return the recipe of ``numpy.reshape``; only another reshape may follow."""
        return self._then(shape, f"reshape {shape}", partial(_reshape, shape=self.shape))

    def _then(self, shape: tuple[int, ...], step: str, view: _View) -> Recipe:
        return replace(self, shape=shape, steps=(*self.steps, step), _views=(view, *self._views))


def stored(record: TensorRecord) -> Recipe:
    """Return the recipe of a record as it is."""
    return Recipe(record.shape, (record,), (), 0, _copy)


def concatenated(records: Sequence[TensorRecord], axis: int, step: str) -> Recipe | None:
    """Return the recipe of records one after the other along an axis; ``None`` if their shapes do not allow it."""
    first = records[0].shape
    if not first:
        return None
    axis %= len(first)
    if any(r.shape[:axis] + r.shape[axis + 1 :] != first[:axis] + first[axis + 1 :] for r in records) or any(
        len(r.shape) != len(first) for r in records
    ):
        return None
    shape = (*first[:axis], sum(r.shape[axis] for r in records), *first[axis + 1 :])
    return Recipe(shape, tuple(records), (step,), 0, partial(_concatenate, axis=axis))


def computed(
    record: TensorRecord, shape: tuple[int, ...], step: str, function: Callable[[_Array], Any], spare_bytes: int
) -> Recipe:
    """Return the recipe of a function of one array, whose result is copied."""

    def fill(out: _Array, arrays: Sequence[_Array]) -> None:
        _put(out, function(arrays[0]))

    return Recipe(shape, (record,), (step,), spare_bytes, fill)


def filled(record: TensorRecord, shape: tuple[int, ...], step: str, base: _Fill, spare_bytes: int = 0) -> Recipe:
    """Return the recipe of one array that ``base(out, arrays)`` writes."""
    return Recipe(shape, (record,), (step,), spare_bytes, base)


def unknown(shape: tuple[int, ...]) -> Recipe:
    """Return a placeholder for a result of which only the shape is known."""
    return Recipe(shape, (), ("unknown",), 0, _copy)


def _put(out: _Array, values: Any) -> None:
    np.copyto(out, values, casting="unsafe")


def _copy(out: _Array, arrays: Sequence[_Array]) -> None:
    _put(out, arrays[0])


def _concatenate(out: _Array, arrays: Sequence[_Array], *, axis: int) -> None:
    start = 0
    for array in arrays:
        end = start + array.shape[axis]
        _put(out[(slice(None),) * axis + (slice(start, end),)], array)
        start = end


def _reshape(array: _Array, *, shape: tuple[int, ...]) -> _Array:
    return array.reshape(shape)
