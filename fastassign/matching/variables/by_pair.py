"""Variables that the caller has paired with values himself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastassign.catalog.catalog import Catalog, CatalogEntry
from fastassign.catalog.memory import ArrayRecord, ArraysInMemory
from fastassign.catalog.origin import Origin
from fastassign.errors import Mismatch
from fastassign.matching.assignment import Matching
from fastassign.targets.bare import check_numeric
from fastassign.targets.target import Target
from fastassign.targets.variables import any_target, may_use_handles, numpy_dtype_of, shape_error

# Kinds of numpy dtypes that no number comes from: objects, texts, dates.
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
        A value has another shape than its variable, or is no number; the text for shapes is that of the library's
        own ``assign``.
    Unsupported
        A variable of strings.
    TypeError
        Something is no variable.
    """
    handles = may_use_handles()
    arrays = Matching(library="tensorflow", layout="named")
    matchings: dict[int, tuple[Origin, Matching]] = {}
    last = {id(_storage(variable)): (variable, value) for variable, value in pairs}
    for position, (variable, value) in enumerate(last.values()):
        if isinstance(value, CatalogEntry):
            record = value.record
            _matching(matchings, value.catalog).assign(
                record, _target(variable, record.shape, record.key, handles=handles)
            )
        else:
            array = np.asarray(value)
            key = f"array {position}"
            target = _target(variable, array.shape, key, handles=handles)
            arrays.assign_array(_array_record(key, array, target), target)
    if arrays.assignments:
        matchings[0] = (ArraysInMemory(), arrays)
    return list(matchings.values())


def _matching(matchings: dict[int, tuple[Origin, Matching]], catalog: Catalog) -> Matching:
    if id(catalog) not in matchings:
        matchings[id(catalog)] = (catalog, Matching(library="tensorflow", layout="named"))
    return matchings[id(catalog)][1]


def _storage(variable: Any) -> Any:
    """Return what a variable of Keras stands for: both are one, whichever of them comes in a pair."""
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
    # Records are void too, by type; so are the dtypes of ml_dtypes, by kind.
    if array.dtype.kind in _NO_NUMBERS or array.dtype.type is np.void:
        raise Mismatch(
            f"an array of dtype {array.dtype} can't become a value of {target.name}, which is {target.dtype}",
            tensor=key,
            variable=target.name,
        )
    # Another byte order is no cast: the values stay what they are.
    detail = "" if array.dtype.newbyteorder("=") == wanted else f"cast from {array.dtype.name}"
    return ArrayRecord(key, array, array.shape, array.size * wanted.itemsize, detail)
