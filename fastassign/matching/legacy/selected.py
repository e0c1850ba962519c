"""Legacy files, part of them or under other names: ``include``, ``exclude`` and ``rename``.

Layers are paired by name, as with ``by_name=True``. Every weight of the file has a path, ``layer/...``; ``rename``
may move it to another layer, so that several layers of the file, or part of one, can fill one layer of the model.
The selected layers have to be in the file; other weights of the file are reported as unexpected. Counts, shapes and
texts are those of ``by_name``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastassign.catalog.keras_legacy import LegacyContents, SavedLayer
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.legacy import weight_names
from fastassign.matching.legacy.by_name import match_layer, match_top_level
from fastassign.matching.legacy.composite import reorder
from fastassign.matching.legacy.context import LegacyContext
from fastassign.matching.selection import Selection, path_below
from fastassign.targets.target import LayerTargets, Target


@dataclass(frozen=True, slots=True)
class _Saved:
    """A weight of the file: its new path, its name and key, and the layer that it comes from."""

    path: str
    name: str
    key: str
    layer: SavedLayer


def match_selected(context: LegacyContext, selection: Selection, *, by_name: bool) -> None:
    """Match the selected layers of a model to the weights of a legacy file.

    Raises
    ------
    Mismatch
        A selected layer is not in the file (unless ``by_name`` or ``skip_mismatch``), or does not fit.
    """
    model = context.model
    layers = model.layers()
    saved = _by_layer(_renamed(context.saved, selection), [layer.name for layer in layers])
    own = model.top_level(by_name=by_name)
    chosen = [_chosen(context, selection, layer.name, layer.targets) for layer in layers]
    own_chosen = _chosen(context, selection, model.model.name, own)
    selection.check()  # before anything that does not fit: a mistyped name is the likelier reason
    absent = [layer for layer, taken in zip(layers, chosen, strict=True) if any(taken) and layer.name not in saved]
    if absent:
        _note_absent(context, absent, strict=not (by_name or context.skip_mismatch))
    for k, (layer, taken) in enumerate(zip(layers, chosen, strict=True)):
        if not any(taken) or layer.name not in saved:
            continue
        records = _records(context, layer, saved[layer.name])
        values, part = context.converter.values(layer, records), layer
        if len(values) == len(layer.targets):  # else all of it, to be refused
            values = [value for value, take in zip(values, taken, strict=True) if take]
            part = replace(layer, targets=tuple(t for t, take in zip(layer.targets, taken, strict=True) if take))
        match_layer(context, k, part, values)
    if context.saved.top_level is not None and any(own_chosen):
        _top_level(context, context.saved.top_level, own, own_chosen)


def _renamed(saved: LegacyContents, selection: Selection) -> list[_Saved]:
    """Return the weights of the file under their new paths.

    Raises
    ------
    Mismatch
        Two get the same path.
    """
    found: dict[str, _Saved] = {}
    for layer in saved.layers:
        paths = [path_below(layer.name, name) for name, _ in layer.weights]
        if len(set(paths)) < len(paths):
            paths = [f"{layer.name}/{name}" for name, _ in layer.weights]
        for path, (name, key) in zip(paths, layer.weights, strict=True):
            new = selection.new_path(path, key, f"{layer.name}/{name}")
            if new is None:
                continue
            if new in found:
                raise Mismatch(f"rename turns both {found[new].key} and {key} of the file into {new}", tensor=key)
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


def _records(context: LegacyContext, layer: LayerTargets, weights: Sequence[_Saved]) -> list[TensorRecord]:
    """Return the weights for a layer, in the order of its variables: by name, or as the layer of the file has them."""
    whole = weights[0].layer
    stored = SavedLayer(whole.name, tuple((weight.path, weight.key) for weight in weights))
    records = context.records(stored)
    if [weight.key for weight in weights] == [key for _, key in whole.weights]:
        reorders = context.options.match == "names" and layer.composite
        return reorder(context, layer, stored, records) if reorders else records
    present = [path_below(layer.name, target.name) for target in layer.targets]
    order = weight_names.permutation([weight.path for weight in weights], present)
    if order is not None:
        return [records[position] for position in order]
    lacking = [path for path in present if path not in {weight.path for weight in weights}]
    raise Mismatch(
        f"layer {layer.name} would be filled with {len(weights)} weights that are not one whole layer of the file, and "
        f"their names are not those of its {len(present)} variables"
        + (f"; not among them: {', '.join(lacking[:5])}{', ...' if len(lacking) > 5 else ''}" if lacking else ""),
        tensor=weights[0].key,
        variable=layer.targets[0].name,
        hint=f"in the file: {', '.join(weight.path for weight in weights[:5])}",
    )


def _top_level(context: LegacyContext, stored: SavedLayer, own: tuple[Target, ...], taken: Sequence[bool]) -> None:
    records = context.records(stored)
    order = weight_names.permutation([name for name, _ in stored.weights], [target.name for target in own])
    if order is not None:
        records = [records[position] for position in order]
    if len(records) == len(own):
        records = [record for record, take in zip(records, taken, strict=True) if take]
        own = tuple(target for target, take in zip(own, taken, strict=True) if take)
    match_top_level(context, own, records)


def _chosen(context: LegacyContext, selection: Selection, layer: str, targets: Sequence[Target]) -> list[bool]:
    """Tell which variables of a layer are to be loaded, and note the others."""
    taken = [selection.takes(path_below(layer, target.name), target.name) for target in targets]
    for target, take in zip(targets, taken, strict=True):
        if not take:
            context.builder.leave_out(target.name, target.variable)
    return taken


def _note_absent(context: LegacyContext, absent: Sequence[LayerTargets], *, strict: bool) -> None:
    """Note selected layers that are not in the file; where ``strict``, that is an error."""
    if not strict:
        for layer in absent:
            context.builder.skip(f"layer {layer.name}: not in the file")
        return
    shown = ", ".join(layer.name for layer in absent[:5]) + (", ..." if len(absent) > 5 else "")
    raise Mismatch(
        f"{len(absent)} of the selected layers are not in the file: {shown}",
        file=context.catalog.path,
        variable=absent[0].targets[0].name,
    )
