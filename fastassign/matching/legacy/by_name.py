"""Legacy files, by the names of the top-level layers: ``by_name=True``.

Inside a layer the order decides, as in stock (``load_weights_from_hdf5_group_by_name``), except that the weights of
composite layers are first brought into the order of the model (``composite``). If no layer of the file has the name of
a layer of the model, that is an error here; stock returns without having loaded anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal

from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.conversions.converter import Value
from fastassign.matching.legacy.composite import reorder
from fastassign.matching.legacy.context import LegacyContext
from fastassign.targets.target import LayerTargets, ModelTargets, Target


def match_by_name(context: LegacyContext) -> None:
    """Match the layers of a legacy file to those of a model by name.

    Raises
    ------
    Mismatch
        Weights or shapes of a layer that both have do not agree (the text is stock's), or no layer is shared.
    """
    model, saved = context.model, context.saved
    layers = model.layers()
    by_name: dict[str, list[LayerTargets]] = {}
    for layer in layers:
        by_name.setdefault(layer.name, []).append(layer)
    weightless = {layer.name: layer for layer in getattr(model.model, "layers", ())}
    shared = 0
    for k, stored in enumerate(saved.layers):
        records = context.records(stored)
        empty = weightless.get(stored.name)
        if records and empty is not None and stored.name not in by_name:
            _count_mismatch(context, k, LayerTargets(stored.name, empty, (), False), len(records))
        for layer in by_name.get(stored.name, ()):
            shared += 1
            inner = records
            if context.options.match == "names" and layer.composite:
                inner = reorder(context, layer, stored, records)
            match_layer(context, k, layer, context.converter.values(layer, inner))
    if saved.top_level is not None:
        own = model.top_level(by_name=True)
        records = context.records(saved.top_level)
        shared += bool(own and records)
        match_top_level(context, own, records)
    if not shared:
        _check_names(context, len(layers), list(by_name))


def _check_names(context: LegacyContext, count: int, present: Sequence[str]) -> None:
    """Raise an error if the file has layers, but none of the model's names, or no layer names at all."""
    names = [layer.name for layer in context.saved.layers if layer.weights]
    if names:
        raise Mismatch(
            f"by_name=True matched nothing: none of the {len(names)} saved layers with weights has the name of one of "
            f"the {count} layers of the model",
            file=context.catalog.path,
            hint=_nearest(names, present),
        )
    if not context.saved.layers:
        raise Mismatch(
            "by_name=True matched nothing: the file has no layer names",
            file=context.catalog.path,
            hint="only legacy .h5 files have layer names; a Keras 3 weights file must be named *.weights.h5",
        )


def match_layer(context: LegacyContext, k: int, layer: LayerTargets, values: Sequence[Value]) -> None:
    """Match the values for one layer of the model to its variables, by position; texts are those of ``by_name``."""
    place = f"layer #{k} (named {layer.name})"
    if len(values) != len(layer.targets):
        _count_mismatch(context, k, layer, len(values))
    elif context.model.library == "keras":
        context.match_weights(place, layer.targets, values)
    else:
        _match_tf_keras(context, f"Shape mismatch in {place} for weight", place, layer.targets, values)


def _match_tf_keras(
    context: LegacyContext, error: str, place: str, targets: Sequence[Target], values: Sequence[Value]
) -> None:
    for target, value in zip(targets, values, strict=True):
        if target.shape == value.shape:
            context.builder.assign(value, target)
        else:
            _shape_mismatch(context, error, place, target, value)


def _shape_mismatch(context: LegacyContext, error: str, place: str, target: Target, value: Value) -> None:
    detail = f"{target.name}. Weight expects shape {target.shape}. Received saved weight with shape {value.shape}"
    if not context.skip_mismatch:
        raise Mismatch(f"{error} {detail}", tensor=value.key, variable=target.name)
    text = f"Skipping loading weights for {place} due to mismatch in shape for weight {detail}"
    if place == "top-level":
        text = f"Skipping loading top-level weight for model due to mismatch in shape for weight {detail}"
    context.builder.warn(text, "logging")
    context.skip_shape(target, value)


def match_top_level(context: LegacyContext, own: Sequence[Target], records: Sequence[TensorRecord]) -> None:
    """Match the weights that belong to the model itself, by position."""
    if len(records) != len(own):
        counts = f"Model expects {len(own)} top-level weight(s). Received {len(records)} saved top-level weight(s)"
        if not context.skip_mismatch:
            raise Mismatch(f"Weight count mismatch for top-level weights of model. {counts}")
        text = f"Skipping loading top-level weights for model due to mismatch in number of weights. {counts}"
        context.builder.warn(text, _channel(context.model))
        context.builder.skip("top-level weights: " + counts)
        return
    values = [context.converter.reshaped(record, target.shape) for record, target in zip(records, own, strict=True)]
    if context.model.library == "keras":
        context.match_weights("top-level model", own, values)
    else:
        _match_tf_keras(context, "Shape mismatch in model for top-level weight", "top-level", own, values)


def _count_mismatch(context: LegacyContext, k: int, layer: LayerTargets, received: int) -> None:
    counts = f"Layer expects {len(layer.targets)} weight(s). Received {received} saved weight(s)"
    if not context.skip_mismatch:
        raise Mismatch(f"Weight count mismatch for layer #{k} (named {layer.name}). {counts}")
    text = (
        f"Skipping loading of weights for layer #{k} (named "
        f"{layer.name}) due to mismatch in number of weights. "
        f"{counts}"
    )
    context.builder.warn(text, _channel(context.model))
    context.builder.skip(f"layer {layer.name}: {counts}")


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
    return "layers may have been renamed: " + "; ".join(pairs)
