"""Legacy files, layer by layer in the order of the model: Keras' default for ``.h5``.

Texts and the order of the checks are those of ``load_weights_from_hdf5_group`` in Keras 3
(``legacy_h5_format.py``) and tf_keras (``hdf5_format.py``), except that everything is checked before anything is
assigned.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import SavedLayer
from fastassign.errors import Mismatch
from fastassign.matching.conversions.converter import Value
from fastassign.matching.legacy.composite import reorder
from fastassign.matching.legacy.context import LegacyContext
from fastassign.targets.target import LayerTargets, Target


def match_by_order(context: LegacyContext) -> None:
    """Match the layers of a legacy file to those of a model by position.

    Raises
    ------
    Mismatch
        Layers, weights or shapes do not agree; the text is stock's.
    """
    layers = context.model.layers()
    saved = [layer for layer in context.saved.layers if layer.weights]
    if len(saved) != len(layers):
        raise Mismatch(
            "Layer count mismatch when loading weights from file. "
            f"Model expected {len(layers)} layers, found "
            f"{len(saved)} saved layers.",
            hint=_count_hint(context.catalog, layers, saved),
        )
    # tf_keras counts the weights of all layers before it assigns the first; Keras 3 goes layer by layer.
    pending: list[tuple[str, Sequence[Target], Sequence[Value]]] = []
    for k, (stored, layer) in enumerate(zip(saved, layers, strict=True)):
        records = context.records(stored)
        # Before any conversion, which takes weights at other positions for weights of another layout.
        if context.options.match == "names" and layer.composite:
            records = reorder(context, layer, stored, records)
        values = context.converter.values(layer, records)
        _check_count(k, layer, stored.name, len(values))
        pending.append((f"layer #{k} (named {layer.name})", layer.targets, values))
        if context.model.library == "keras":
            context.match_weights(*pending.pop())
    if context.saved.top_level is not None:
        pending.append(_top_level(context, context.saved.top_level))
    for place, targets, values in pending:
        context.match_weights(place, targets, values)


def _top_level(context: LegacyContext, stored: SavedLayer) -> tuple[str, Sequence[Target], Sequence[Value]]:
    own = context.model.top_level(by_name=False)
    records = context.records(stored)
    if len(records) != len(own):
        raise Mismatch(
            "Weight count mismatch for top-level weights when loading "
            "weights from file. "
            f"Model expects {len(own)} top-level weight(s). "
            f"Received {len(records)} saved top-level weight(s)"
        )
    convert = context.converter.reshaped
    values = [convert(record, target.shape) for record, target in zip(records, own, strict=True)]
    return "top-level model", own, values


def _check_count(k: int, layer: LayerTargets, saved_name: str, received: int) -> None:
    if received != len(layer.targets):
        raise Mismatch(
            f"Weight count mismatch for layer #{k} (named {layer.name} in "
            f"the current model, {saved_name} in the save file). "
            f"Layer expects {len(layer.targets)} weight(s). Received "
            f"{received} saved weight(s)"
        )


def _count_hint(catalog: Catalog, layers: Sequence[LayerTargets], saved: Sequence[SavedLayer]) -> str:
    if not saved and catalog.format == "keras3":
        return f"{catalog.path.name} holds Keras 3 weights: rename it to *.weights.h5 to load it"
    if not layers:
        return "the model has no weights yet: first build it, or call it on some data"
    return "by_name=True loads the layers whose names agree"
