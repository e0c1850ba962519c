"""Legacy files, part of them or under other names: ``include``, ``exclude`` and ``rename``.

Layers find each other by name, as with ``by_name=True``. Every weight of the file has a path, ``layer/...``; ``rename``
may take it to another layer, so that one layer of the model is filled by several of the file, or from a part of one.
What is selected has to be in the file; what else is there is left over. Counts, shapes and texts are those of
``by_name``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import LegacyContents, SavedLayer
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.assignment import Matching
from fastassign.matching.conversions.converter import Converter
from fastassign.matching.legacy import weight_names
from fastassign.matching.legacy.by_name import match_layer, match_top_level
from fastassign.matching.legacy.by_order import saved_records
from fastassign.matching.legacy.composite import reorder
from fastassign.matching.selection import Selection, path_below
from fastassign.options import LoadOptions
from fastassign.targets.target import LayerTargets, ModelTargets, Target


@dataclass(frozen=True, slots=True)
class _Saved:
    """A weight of the file: its new path, its name and key, and the layer that it comes from."""

    path: str
    name: str
    key: str
    layer: SavedLayer


def match_selected(
    model: ModelTargets,
    catalog: Catalog,
    layout: LegacyContents,
    selection: Selection,
    *,
    by_name: bool,
    skip_mismatch: bool,
    options: LoadOptions,
) -> Matching:
    """Match what is selected of a model to the weights of a legacy file.

    Raises
    ------
    Mismatch
        A selected layer is not in the file (unless ``by_name`` or ``skip_mismatch``), or does not fit.
    """
    matching = Matching(library=model.library, layout="legacy")
    converter = Converter(model, layout, options)
    layers = model.layers()
    saved = _by_layer(_renamed(layout, selection), [layer.name for layer in layers])
    own = model.top_level(by_name=by_name)
    chosen = [_chosen(matching, selection, layer.name, layer.targets) for layer in layers]
    own_chosen = _chosen(matching, selection, model.model.name, own)
    selection.check()  # before anything that does not fit: a mistyped name is the likelier reason
    absent = [layer for layer, taken in zip(layers, chosen, strict=True) if any(taken) and layer.name not in saved]
    if absent:
        _tell_absent(matching, catalog, absent, strict=not (by_name or skip_mismatch))
    for k, (layer, taken) in enumerate(zip(layers, chosen, strict=True)):
        if not any(taken) or layer.name not in saved:
            continue
        records = _records(matching, model, catalog, layer, saved[layer.name], options.match)
        values, part = converter.values(layer, records), layer
        if len(values) == len(layer.targets):  # else all of it, to be refused
            values = [value for value, take in zip(values, taken, strict=True) if take]
            part = replace(layer, targets=tuple(t for t, take in zip(layer.targets, taken, strict=True) if take))
        match_layer(matching, model, k, part, values, skip_mismatch=skip_mismatch)
    if layout.top_level is not None and any(own_chosen):
        _top_level(matching, model, own, saved_records(catalog, layout.top_level), layout.top_level, own_chosen,
                   converter, skip_mismatch=skip_mismatch)  # fmt: skip
    return matching


def _renamed(layout: LegacyContents, selection: Selection) -> list[_Saved]:
    """Return the weights of the file under their new paths.

    Raises
    ------
    Mismatch
        Two get the same.
    """
    found: dict[str, _Saved] = {}
    for layer in layout.layers:
        paths = [path_below(layer.name, name) for name, _ in layer.weights]
        if len(set(paths)) < len(paths):
            paths = [f"{layer.name}/{name}" for name, _ in layer.weights]
        for path, (name, key) in zip(paths, layer.weights, strict=True):
            new = selection.new_path(path, key, f"{layer.name}/{name}")
            if new is None:
                continue
            if new in found:
                raise Mismatch(f"rename makes both {found[new].key} and {key} of the file {new}", tensor=key)
            found[new] = _Saved(new, name, key, layer)
    return list(found.values())


def _by_layer(weights: Sequence[_Saved], layers: Sequence[str]) -> dict[str, list[_Saved]]:
    """Sort weights by the layer of the model that their path leads to; others by their first part."""
    known = set(layers)
    found: dict[str, list[_Saved]] = {}
    for weight in weights:
        owner = weight.path
        while owner and owner not in known:  # names of tf_keras' layers may have a "/"
            owner = owner.rpartition("/")[0]
        found.setdefault(owner or weight.path.partition("/")[0], []).append(weight)
    return found


def _records(
    matching: Matching,
    model: ModelTargets,
    catalog: Catalog,
    layer: LayerTargets,
    weights: Sequence[_Saved],
    match: Literal["names", "stock"],
) -> list[TensorRecord]:
    """Return the weights for a layer, in the order of its variables: by name, or as the layer of the file has them."""
    whole = weights[0].layer
    stored = SavedLayer(whole.name, tuple((weight.path, weight.key) for weight in weights))
    records = saved_records(catalog, stored)
    if [weight.key for weight in weights] == [key for _, key in whole.weights]:
        return (
            reorder(matching, model, layer, catalog, stored, records)
            if match == "names" and layer.composite
            else records
        )
    present = [path_below(layer.name, target.name) for target in layer.targets]
    order = weight_names.permutation([weight.path for weight in weights], present)
    if order is not None:
        return [records[position] for position in order]
    lacking = [path for path in present if path not in {weight.path for weight in weights}]
    raise Mismatch(
        f"layer {layer.name} would be made of {len(weights)} weights that do not stand together in the file, and by "
        f"name they are not its {len(present)} variables"
        + (f"; not among them: {', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}" if lacking else ""),
        tensor=weights[0].key,
        variable=layer.targets[0].name,
        hint=f"in the file: {', '.join(weight.path for weight in weights[:5])}",
    )


def _top_level(
    matching: Matching,
    model: ModelTargets,
    own: tuple[Target, ...],
    records: list[TensorRecord],
    stored: SavedLayer,
    taken: Sequence[bool],
    converter: Converter,
    *,
    skip_mismatch: bool,
) -> None:
    order = weight_names.permutation([name for name, _ in stored.weights], [target.name for target in own])
    if order is not None:
        records = [records[position] for position in order]
    if len(records) == len(own):
        records = [record for record, take in zip(records, taken, strict=True) if take]
        own = tuple(target for target, take in zip(own, taken, strict=True) if take)
    match_top_level(matching, model, own, records, converter, skip_mismatch=skip_mismatch)


def _chosen(matching: Matching, selection: Selection, layer: str, targets: Sequence[Target]) -> list[bool]:
    """Tell which variables of a layer are to be loaded, and note the others."""
    taken = [selection.takes(path_below(layer, target.name), target.name) for target in targets]
    for target, take in zip(targets, taken, strict=True):
        if not take:
            matching.leave_out(target.name, target.variable)
    return taken


def _tell_absent(matching: Matching, catalog: Catalog, absent: Sequence[LayerTargets], *, strict: bool) -> None:
    if not strict:
        matching.skipped += [f"layer {layer.name}: not in the file" for layer in absent]
        return
    shown = ", ".join(layer.name for layer in absent[:5]) + (", ..." if len(absent) > 5 else "")
    raise Mismatch(
        f"{len(absent)} of the selected layers are not in the file: {shown}",
        file=catalog.path,
        variable=absent[0].targets[0].name,
    )
