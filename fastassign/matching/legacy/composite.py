"""The weights inside one composite layer of a legacy file, brought into the order of the model.

By names where they tell (``weight_names``), else by parts of the names and by shapes (``weight_structure``), else by
position, as in stock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from fastassign.catalog.keras_legacy import SavedLayer
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.legacy import weight_names
from fastassign.matching.legacy.context import LegacyContext
from fastassign.matching.legacy.saved_order import parts_in_order
from fastassign.matching.legacy.weight_structure import Ambiguous, order_by_structure
from fastassign.targets.target import LayerTargets, ModelTargets

_SHOWN = 8


def reorder(
    context: LegacyContext, layer: LayerTargets, stored: SavedLayer, records: list[TensorRecord]
) -> list[TensorRecord]:
    """Return the records of a composite layer in the order of its variables.

    Parameters
    ----------
    context : LegacyContext
        Its builder gets a note where weights stand at other positions.
    layer : LayerTargets
        The layer of the model.
    stored : SavedLayer
        The saved layer, with its weights in the order of ``records``.
    records : list of TensorRecord
        The weights in the order of the file.

    Raises
    ------
    Mismatch
        There are several ways to load them, and neither names nor shapes tell which is right.
    """
    names = [name for name, _ in stored.weights]
    order = weight_names.permutation(names, [target.name for target in layer.targets])
    how = "matched by name"
    if order is None:
        order = _by_structure(
            context.model, layer, names, records, partial(parts_in_order, context.catalog, stored.name)
        )
        how = "matched by parts of their names and their shapes"
    if order is None or order == list(range(len(records))):
        return records
    reordered = [records[position] for position in order]
    if any(record.shape != target.shape for record, target in zip(reordered, layer.targets, strict=True)):
        return records
    context.builder.note_repair(
        f"layer {layer.name}: {sum(a is not b for a, b in zip(records, reordered, strict=True))} weights stand at "
        f"other positions in the file than in the model (trainable differs) and were {how}"
    )
    return reordered


def _by_structure(
    model: ModelTargets,
    layer: LayerTargets,
    names: Sequence[str],
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
            [(name, record.shape) for name, record in zip(names, records, strict=True)], present, thawed, in_order
        )
    except Ambiguous as error:
        raise Mismatch(
            f"layer {layer.name}: its weights have other names in the file than in the model, and other layers inside "
            "it are frozen, so that weights of the same shape can't be told apart:\n"
            + "\n".join(_candidates(layer, names, records)),
            variable=layer.targets[0].name,
            hint="give the layers inside the names that they have in the file; or set `trainable` of each to its value "
            'when the file was saved, and load with LoadOptions(match="stock"), which goes by position',
        ) from error


def _candidates(layer: LayerTargets, names: Sequence[str], records: Sequence[TensorRecord]) -> list[str]:
    lines = []
    for target in layer.targets:
        alike = [name for name, record in zip(names, records, strict=True) if record.shape == target.shape]
        if len(alike) > 1:
            more = ", ..." if len(alike) > _SHOWN else ""
            lines.append(f"{target.name} {target.shape}: {', '.join(alike[:_SHOWN])}{more}")
    return [*lines[:_SHOWN], "..."] if len(lines) > _SHOWN else lines
