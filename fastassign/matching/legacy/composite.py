"""The weights inside one composite layer of a legacy file, brought into the order of the model.

By names where they tell (``names``), else by what is left of them (``structure``), else by position, as stock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import SavedLayer
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.assignment import Matching
from fastassign.matching.legacy import weight_names
from fastassign.matching.legacy.saved_order import parts_in_order
from fastassign.matching.legacy.weight_structure import Ambiguous, order_by_structure
from fastassign.targets.target import LayerTargets, ModelTargets

_SHOWN = 8


def reorder(
    matching: Matching,
    model: ModelTargets,
    layer: LayerTargets,
    catalog: Catalog,
    saved: SavedLayer,
    records: list[TensorRecord],
) -> list[TensorRecord]:
    """Return the records of a composite layer in the order of its variables.

    Parameters
    ----------
    matching : Matching
        Is told of what stands at other positions.
    model, layer
        The model, and the layer of it.
    catalog : Catalog
        The file.
    saved : SavedLayer
        The saved layer, with its weights in the order of ``records``.
    records : list of TensorRecord
        The weights in the order of the file.

    Raises
    ------
    Mismatch
        There are several ways to load them, and neither names nor shapes tell which is right.
    """
    stored = [name for name, _ in saved.weights]
    order = weight_names.permutation(stored, [target.name for target in layer.targets])
    how = "matched by name"
    if order is None:
        order = _by_structure(model, layer, stored, records, partial(parts_in_order, catalog, saved.name))
        how = "told by what is left of their names"
    if order is None or order == list(range(len(records))):
        return records
    reordered = [records[position] for position in order]
    if any(record.shape != target.shape for record, target in zip(reordered, layer.targets, strict=True)):
        return records
    matching.repaired.append(
        f"layer {layer.name}: {sum(a is not b for a, b in zip(records, reordered, strict=True))} weights stand at "
        f"other positions in the file than in the model (trainable differs) and were {how}"
    )
    return reordered


def _by_structure(
    model: ModelTargets,
    layer: LayerTargets,
    stored: Sequence[str],
    records: Sequence[TensorRecord],
    in_order: Callable[[Sequence[str]], list[str] | None],
) -> list[int] | None:
    index = {id(target): position for position, target in enumerate(layer.targets)}
    thawed = [index.get(id(target), -1) for target in model.thawed(layer)]
    if sorted(thawed) != list(range(len(layer.targets))):  # a class that lists its weights in a way of its own
        thawed = list(range(len(layer.targets)))
    present = [(target.name, target.shape) for target in layer.targets]
    try:
        return order_by_structure(
            [(name, record.shape) for name, record in zip(stored, records, strict=True)], present, thawed, in_order
        )
    except Ambiguous as error:
        raise Mismatch(
            f"layer {layer.name}: the names in the file are not those in the model, and what is frozen differs, so "
            "that weights of the same shape can't be told apart:\n" + "\n".join(_candidates(layer, stored, records)),
            variable=layer.targets[0].name,
            hint="give the layers inside the names that they have in the file, or bring `trainable` of each to what it "
            'was when the file was saved and load with LoadOptions(match="stock"), which goes by position',
        ) from error


def _candidates(layer: LayerTargets, stored: Sequence[str], records: Sequence[TensorRecord]) -> list[str]:
    lines = []
    for target in layer.targets:
        alike = [name for name, record in zip(stored, records, strict=True) if record.shape == target.shape]
        if len(alike) > 1:
            more = ", ..." if len(alike) > _SHOWN else ""
            lines.append(f"{target.name} {target.shape}: {', '.join(alike[:_SHOWN])}{more}")
    return [*lines[:_SHOWN], "..."] if len(lines) > _SHOWN else lines
