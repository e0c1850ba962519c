"""The order in which the layers of a nested model were made, from the model's configuration in a whole-model file.

Used only where names and shapes do not determine it, since reading the configuration opens the file once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from fastassign.catalog.catalog import Catalog


def parts_in_order(catalog: Catalog, layer: str, parts: Sequence[str]) -> list[str] | None:
    """Sort the layers inside a saved layer into their order in the saved model, which freezing does not change.

    Parameters
    ----------
    catalog : Catalog
        The file.
    layer : str
        The name of the saved layer.
    parts : sequence of str
        The names of its weights without the last part: ``base/dense_3``, or ``dense_3``.

    Returns
    -------
    list of str or None
        ``None`` if the file has no configuration, or one that does not determine the order.
    """
    text = catalog.root_text("model_config")
    try:
        names = list(_inner(json.loads(text), layer)) if text else []
    except (ValueError, RecursionError):
        return None
    ranks = {name: rank for rank, name in enumerate(names)}
    if len(ranks) < len(names):
        return None
    ranked = []
    for part in parts:
        found = [ranks[name] for name in part.split("/") if name in ranks]
        if len(found) != 1:
            return None
        ranked.append(found[0])
    return [part for _, part in sorted(zip(ranked, parts, strict=True), key=lambda pair: pair[0])]


def _inner(entry: Any, layer: str) -> Iterator[str]:
    """Yield the names of the innermost layers inside the given one."""
    for each in _layers(entry):
        if _name(each) == layer:
            yield from _leaves(each)


def _leaves(entry: Any) -> Iterator[str]:
    for each in _layers(entry):
        if _layers(each):
            yield from _leaves(each)
        else:
            yield _name(each)


def _layers(entry: Any) -> list[Any]:
    config = entry.get("config") if isinstance(entry, dict) else None
    # In Sequential models of Keras 2.0 and 2.1 the configuration is the list itself.
    layers = config.get("layers") if isinstance(config, dict) else config
    return layers if isinstance(layers, list) else []


def _name(entry: Any) -> str:
    config = entry.get("config") if isinstance(entry, dict) else None
    named = config.get("name") if isinstance(config, dict) else None
    return str(named if named is not None else entry.get("name", "") if isinstance(entry, dict) else "")
