"""Legacy files, by the names of the top-level layers: ``by_name=True``.

Inside a layer the order decides, as in stock (``load_weights_from_hdf5_group_by_name``), except that composite layers
are brought into the order of the model first (``inside``). A file of which no
layer is called like one of the model is an error here; stock returns without having loaded anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import LegacyContents
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.assignment import Matching, Notice
from fastassign.matching.conversions.converter import Converter, Value
from fastassign.matching.legacy.by_order import match_weights, saved_records
from fastassign.matching.legacy.composite import reorder
from fastassign.options import LoadOptions
from fastassign.targets.target import LayerTargets, ModelTargets, Target


def match_by_name(
    model: ModelTargets, catalog: Catalog, layout: LegacyContents, *, skip_mismatch: bool, options: LoadOptions
) -> Matching:
    """Match the layers of a legacy file to those of a model by name.

    Raises
    ------
    Mismatch
        Weights or shapes of a layer that both have do not agree (the text is stock's), or no layer is shared.
    """
    matching = Matching(library=model.library, layout="legacy")
    converter = Converter(model, layout, options)
    layers = model.layers()
    by_name: dict[str, list[LayerTargets]] = {}
    for layer in layers:
        by_name.setdefault(layer.name, []).append(layer)
    weightless = {layer.name: layer for layer in getattr(model.model, "layers", ())}
    shared = 0
    for k, stored in enumerate(layout.layers):
        records = saved_records(catalog, stored)
        empty = weightless.get(stored.name)
        if records and empty is not None and stored.name not in by_name:
            _count_mismatch(
                matching, model, k, LayerTargets(stored.name, empty, (), False), len(records), skip_mismatch
            )
        for layer in by_name.get(stored.name, ()):
            shared += 1
            inner = records
            if options.match == "names" and layer.composite:
                inner = reorder(matching, model, layer, catalog, stored, records)
            match_layer(matching, model, k, layer, converter.values(layer, inner), skip_mismatch=skip_mismatch)
    if layout.top_level is not None:
        own = model.top_level(by_name=True)
        records = saved_records(catalog, layout.top_level)
        shared += bool(own and records)
        match_top_level(matching, model, own, records, converter, skip_mismatch=skip_mismatch)
    if not shared and any(layer.weights for layer in layout.layers):
        raise Mismatch(
            f"by_name=True matched nothing: none of the {sum(bool(layer.weights) for layer in layout.layers)} saved "
            f"layers with weights is called like one of the {len(layers)} layers of the model",
            file=catalog.path,
            hint=_nearest([layer.name for layer in layout.layers if layer.weights], list(by_name)),
        )
    if not shared and not layout.layers:
        raise Mismatch(
            "by_name=True matched nothing: the file has no layer names",
            file=catalog.path,
            hint="only legacy .h5 files have layer names; a Keras 3 weights file must be called *.weights.h5",
        )
    return matching


def match_layer(
    matching: Matching,
    model: ModelTargets,
    k: int,
    layer: LayerTargets,
    values: Sequence[Value],
    *,
    skip_mismatch: bool,
) -> None:
    """Match the values for one layer of the model to its variables, by position; texts are those of ``by_name``."""
    place = f"layer #{k} (named {layer.name})"
    if len(values) != len(layer.targets):
        _count_mismatch(matching, model, k, layer, len(values), skip_mismatch)
        return
    if model.library == "keras":
        match_weights(matching, model, place, layer.targets, values, skip_mismatch=skip_mismatch)
    else:
        _match_tf_keras(matching, f"Shape mismatch in {place} for weight", place, layer.targets, values, skip_mismatch)


def _match_tf_keras(
    matching: Matching,
    error: str,
    place: str,
    targets: Sequence[Target],
    values: Sequence[Value],
    skip_mismatch: bool,
) -> None:
    for target, value in zip(targets, values, strict=True):
        if target.shape == value.shape:
            matching.assign(value, target)
        else:
            _shape_mismatch(matching, error, place, target, value.shape, skip_mismatch, value.key)


def _shape_mismatch(
    matching: Matching,
    error: str,
    place: str,
    target: Target,
    received: tuple[int, ...],
    skip_mismatch: bool,
    key: str | None = None,
) -> None:
    detail = f"{target.name}. Weight expects shape {target.shape}. Received saved weight with shape {received}"
    if not skip_mismatch:
        raise Mismatch(f"{error} {detail}", tensor=key, variable=target.name)
    text = f"Skipping loading weights for {place} due to mismatch in shape for weight {detail}"
    if place == "top-level":
        text = f"Skipping loading top-level weight for model due to mismatch in shape for weight {detail}"
    matching.notices.append(Notice(text, "logging"))
    matching.skipped.append(f"{target.name}: shape {target.shape}, saved {received}" + (f" ({key})" if key else ""))


def match_top_level(
    matching: Matching,
    model: ModelTargets,
    own: Sequence[Target],
    records: Sequence[TensorRecord],
    converter: Converter,
    *,
    skip_mismatch: bool,
) -> None:
    """Match the weights that belong to the model itself, by position."""
    if len(records) != len(own):
        counts = f"Model expects {len(own)} top-level weight(s). Received {len(records)} saved top-level weight(s)"
        if not skip_mismatch:
            raise Mismatch(f"Weight count mismatch for top-level weights of model. {counts}")
        text = f"Skipping loading top-level weights for model due to mismatch in number of weights. {counts}"
        matching.notices.append(Notice(text, _channel(model)))
        matching.skipped.append("top-level weights: " + counts)
        return
    values = [converter.reshaped(record, target.shape) for record, target in zip(records, own, strict=True)]
    if model.library == "keras":
        match_weights(matching, model, "top-level model", own, values, skip_mismatch=skip_mismatch)
    else:
        error = "Shape mismatch in model for top-level weight"
        _match_tf_keras(matching, error, "top-level", own, values, skip_mismatch)


def _count_mismatch(
    matching: Matching, model: ModelTargets, k: int, layer: LayerTargets, received: int, skip_mismatch: bool
) -> None:
    counts = f"Layer expects {len(layer.targets)} weight(s). Received {received} saved weight(s)"
    if not skip_mismatch:
        raise Mismatch(f"Weight count mismatch for layer #{k} (named {layer.name}). {counts}")
    text = (
        f"Skipping loading of weights for layer #{k} (named "
        f"{layer.name}) due to mismatch in number of weights. "
        f"{counts}"
    )
    matching.notices.append(Notice(text, _channel(model)))
    matching.skipped.append(f"layer {layer.name}: {counts}")


def _channel(model: ModelTargets) -> Literal["warnings", "logging"]:
    return "warnings" if model.library == "keras" else "logging"


def _nearest(saved: Sequence[str], present: Sequence[str]) -> str:
    pairs = []
    for name in saved[:200]:
        close = difflib.get_close_matches(name, present, n=1, cutoff=0.5)
        if close:
            pairs.append(f"{name} in the file, {close[0]} in the model")
        if len(pairs) == 3:
            break
    if not pairs:
        return "give the model's layers the names they had when the file was saved, or load by order"
    return "renamed since? " + "; ".join(pairs)
