"""Variables without a model: each finds its tensor by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import is_legacy, read_legacy
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.builder import MatchingBuilder
from fastassign.targets.target import Target

if TYPE_CHECKING:
    from fastassign.targets.bare import BareTargets


def match_by_key(variables: BareTargets, catalog: Catalog, *, skip_mismatch: bool) -> MatchingBuilder:
    """Match variables to tensors: by the whole HDF5 path, else by the end of the path if only one tensor has that end.

    TensorFlow's output number (``":0"``) is ignored in the file and in the name. In a legacy file only the weights of
    the layers count, not the optimizer's.

    Raises
    ------
    Mismatch
        A variable has no tensor, more than one, or one of another shape; the text names all such variables.
    """
    builder = MatchingBuilder(variables.library, "named")
    ends = _by_end(_weights(catalog))
    problems: list[str] = []
    first: Mismatch | None = None
    for name in variables.named:
        try:
            record = _record(name, ends, catalog)
            builder.assign(record, _target(name, variables, record))
        except Mismatch as error:
            first = first or error
            problems.append(str(error))
            builder.skip(str(error))
    if first is not None and not skip_mismatch:
        if len(problems) == 1:
            raise first
        raise Mismatch(
            f"{len(problems)} of {len(variables.named)} variables do not fit:\n" + "\n".join(problems),
            variable=first.variable,
            hint=first.hint,
        )
    return builder


def _weights(catalog: Catalog) -> Iterable[TensorRecord]:
    records = catalog.contents.records
    if not is_legacy(catalog.contents):
        return records.values()
    return [records[key] for key in read_legacy(catalog.contents).keys if key in records]


def _by_end(records: Iterable[TensorRecord]) -> dict[str, list[TensorRecord]]:
    ends: dict[str, list[TensorRecord]] = {}
    for record in records:
        end = _plain(record.key)
        while end:
            ends.setdefault(end, []).append(record)
            end = end.partition("/")[2]
    return ends


def _plain(name: str) -> str:
    return name.removesuffix(":0").strip("/")


def _record(name: str, ends: dict[str, list[TensorRecord]], catalog: Catalog) -> TensorRecord:
    # A tensor that the policy refuses is not among the records: looking it up by its path raises an error.
    exact = catalog.find(name) or catalog.find(_plain(name))
    if exact is not None:
        return exact
    found = ends.get(_plain(name), [])
    if len(found) > 1:
        whole = [record for record in found if _plain(record.key) == _plain(name)]
        found = whole or found
    if len(found) == 1:
        return found[0]
    if found:
        raise Mismatch(
            f"{name}: {len(found)} tensors of the file have a path that ends so: "
            + ", ".join(record.key for record in found[:5]),
            variable=name,
            hint="pass a mapping with the whole path: {path in the file: variable, ...}",
        )
    near = difflib.get_close_matches(_plain(name), ends, n=3)
    raise Mismatch(
        f"{name}: no tensor of the file has this name" + (f"; near: {', '.join(near)}" if near else ""),
        variable=name,
        hint=f"list the tensors of the file with: fastassign inspect {catalog.path}",
    )


def _target(name: str, variables: BareTargets, record: TensorRecord) -> Target:
    target = variables.target(name, record.shape)
    if target.shape != record.shape:
        raise Mismatch(
            f"{name}: the variable has shape {variables.static_shape(name)}, and {record.key} in the file has shape "
            f"{record.shape}",
            tensor=record.key,
            variable=name,
        )
    return target
