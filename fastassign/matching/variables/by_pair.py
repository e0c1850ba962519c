"""Variables that the caller has paired with values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastassign.catalog.catalog import Catalog, CatalogEntry
from fastassign.catalog.memory import ArrayRecord, ArraysInMemory
from fastassign.catalog.origin import Origin
from fastassign.errors import Mismatch
from fastassign.matching.assignment import Matching
from fastassign.matching.builder import MatchingBuilder
from fastassign.targets.bare import check_numeric
from fastassign.targets.target import Target
from fastassign.targets.variables import any_target, may_use_handles, numpy_dtype_of, shape_error

# Kinds of numpy dtypes whose values are not numbers: objects, strings, dates.
_NO_NUMBERS = frozenset("OSUMm")


def match_pairs(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Origin, Matching]]:
    """Match variables with arrays and with tensors of catalogs.

    Parameters
    ----------
    pairs : iterable of (variable, array_like or CatalogEntry)
        A variable that comes twice gets the later value, as in Keras.

    Returns
    -------
    list of (Origin, Matching)
        One for the arrays, and one for each file.

    Raises
    ------
    Mismatch
        A value has another shape than its variable, or is not a number; the text for shapes is that of the library's
        own ``assign``.
    Unsupported
        A variable of strings.
    TypeError
        Something is not a variable.
    """
    handles = may_use_handles()
    arrays: MatchingBuilder | None = None
    files: dict[int, tuple[Catalog, MatchingBuilder]] = {}
    last = {id(_storage(variable)): (variable, value) for variable, value in pairs}
    for position, (variable, value) in enumerate(last.values()):
        if isinstance(value, CatalogEntry):
            record = value.record
            if id(value.catalog) not in files:
                files[id(value.catalog)] = (value.catalog, MatchingBuilder("tensorflow", "named"))
            _, builder = files[id(value.catalog)]
            builder.assign(record, _target(variable, record.shape, record.key, handles=handles))
        else:
            arrays = arrays or MatchingBuilder("tensorflow", "named")
            array = np.asarray(value)
            key = f"array {position}"
            target = _target(variable, array.shape, key, handles=handles)
            arrays.assign_array(_array_record(key, array, target), target)
    matchings: list[tuple[Origin, Matching]] = [(catalog, builder.build()) for catalog, builder in files.values()]
    if arrays is not None:
        matchings.append((ArraysInMemory(), arrays.build()))
    return matchings


def _storage(variable: Any) -> Any:
    """Return the variable behind one of Keras, so that a pair with either of them is the same pair."""
    inner = getattr(variable, "_value" if hasattr(variable, "path") else "_variable", None)
    return variable if inner is None else inner


def _target(variable: Any, shape: tuple[int, ...], key: str, *, handles: bool) -> Target:
    target = any_target(variable, shape, handles=handles)
    check_numeric(target)
    if target.shape != shape:
        raise Mismatch(shape_error(target, shape), tensor=key, variable=target.name)
    return target


def _array_record(key: str, array: np.ndarray[Any, Any], target: Target) -> ArrayRecord:
    wanted = numpy_dtype_of(target.dtype)
    # The test for structured dtypes is by type, because the dtypes of ml_dtypes are of the kind void as well.
    if array.dtype.kind in _NO_NUMBERS or array.dtype.type is np.void:
        raise Mismatch(
            f"an array of dtype {array.dtype} can't become a value of {target.name}, which is {target.dtype}",
            tensor=key,
            variable=target.name,
        )
    # Another byte order is not a cast: the values stay the same.
    detail = "" if array.dtype.newbyteorder("=") == wanted else f"cast from {array.dtype.name}"
    return ArrayRecord(key, array, array.shape, array.size * wanted.itemsize, detail)
