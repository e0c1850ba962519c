"""Legacy files, layer by layer in the order of the model: Keras' default for ``.h5``.

Texts and the order of the checks are those of ``load_weights_from_hdf5_group`` in Keras 3
(``legacy_h5_format.py``) and tf_keras (``hdf5_format.py``), except that everything is checked before anything is
assigned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import LegacyContents, SavedLayer
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Malformed, Mismatch
from fastassign.matching.assignment import Matching, Notice
from fastassign.matching.conversions.converter import Converter, Value, reshaped
from fastassign.matching.legacy.composite import reorder
from fastassign.options import LoadOptions
from fastassign.targets.target import LayerTargets, ModelTargets, Target


def match_by_order(
    model: ModelTargets,
    catalog: Catalog,
    layout: LegacyContents,
    *,
    skip_mismatch: bool,
    options: LoadOptions,
) -> Matching:
    """Match the layers of a legacy file to those of a model by position.

    Raises
    ------
    Mismatch
        Layers, weights or shapes do not agree; the text is stock's.
    """
    matching = Matching(library=model.library, layout="legacy")
    layers = model.layers()
    saved = [layer for layer in layout.layers if layer.weights]
    if len(saved) != len(layers):
        raise Mismatch(
            "Layer count mismatch when loading weights from file. "
            f"Model expected {len(layers)} layers, found "
            f"{len(saved)} saved layers.",
            hint=_count_hint(catalog, layers, saved),
        )
    converter = Converter(model, layout, options)
    pending: list[Callable[[], None]] = []
    for k, (stored, layer) in enumerate(zip(saved, layers, strict=True)):
        records = saved_records(catalog, stored)
        place = f"layer #{k} (named {layer.name})"
        # Before any conversion, which takes weights at other positions for weights of another layout.
        if options.match == "names" and layer.composite:
            records = reorder(matching, model, layer, catalog, stored, records)
        values = converter.values(layer, records)
        _check_count(k, layer, stored.name, len(values))
        pending.append(
            partial(match_weights, matching, model, place, layer.targets, values, skip_mismatch=skip_mismatch)
        )
        if model.library == "keras":
            pending.pop()()
    if layout.top_level is not None:
        own = model.top_level(by_name=False)
        records = saved_records(catalog, layout.top_level)
        if len(records) != len(own):
            raise Mismatch(
                "Weight count mismatch for top-level weights when loading "
                "weights from file. "
                f"Model expects {len(own)} top-level weight(s). "
                f"Received {len(records)} saved top-level weight(s)"
            )
        values = [reshaped(record, target.shape) for record, target in zip(records, own, strict=True)]
        pending.append(
            partial(match_weights, matching, model, "top-level model", own, values, skip_mismatch=skip_mismatch)
        )
    # tf_keras counts the weights of all layers before it assigns the first; Keras 3 goes layer by layer.
    for match_one in pending:
        match_one()
    return matching


def saved_records(catalog: Catalog, layer: SavedLayer) -> list[TensorRecord]:
    """Return the records of a saved layer, in its order.

    Raises
    ------
    Malformed
        The file names a weight that it does not have.
    """
    records = []
    for name, key in layer.weights:
        record = catalog.find(key)
        if record is None:
            raise Malformed(
                f"the file lists the weight {name!r} of layer {layer.name!r}, but has no dataset of that name",
                file=catalog.path,
                tensor=key,
                hint="the file is damaged: save it again",
            )
        records.append(record)
    return records


def match_weights(
    matching: Matching,
    model: ModelTargets,
    place: str,
    targets: Sequence[Target],
    values: Sequence[Value],
    *,
    skip_mismatch: bool,
) -> None:
    """Pair values and variables of one layer by position, checking shapes as the library does."""
    for target, value in zip(targets, values, strict=True):
        if value.shape == target.shape:
            matching.assign(value, target)
            continue
        if model.library == "tf_keras":
            text = model.shape_error(target, value.shape)
            raise Mismatch(text, tensor=value.key, variable=target.name)
        detail = (
            f"weight {target.name}. Weight expects shape {target.shape}. Received saved weight with shape {value.shape}"
        )
        if not skip_mismatch:
            raise Mismatch(f"Shape mismatch in {place}for {detail}", tensor=value.key, variable=target.name)
        matching.notices.append(Notice(f"Skipping loading weights for {place}due to mismatch in shape for {detail}"))
        matching.skipped.append(f"{target.name}: shape {target.shape}, saved {value.shape} ({value.key})")


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
        return f"{catalog.path.name} holds Keras 3 weights: name it *.weights.h5 to load it"
    if not layers:
        return "the model has no weights yet: build it, or call it on some data, first"
    return "by_name=True loads the layers whose names agree"
