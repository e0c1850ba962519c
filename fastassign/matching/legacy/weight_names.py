"""The order of the weights inside a composite layer, found by their names.

A legacy file lists the weights of a layer as trainable ones, then the others. If a layer inside was frozen when
the file was saved and is not now (or the reverse), the positions shift, and stock assigns weights to the wrong
variables whenever the shapes allow it (docs/internals/keras.md, section 3). The names in the file do not shift, once
the parts that depend on the history of the process are removed from them:

* ``:0``, which TensorFlow appends;
* the leading path components that all names of the layer share;
* the counter in ``dense_7``, which is replaced by its rank among the siblings of that stem.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_COUNTER = re.compile(r"(.*?)(?:_(\d+))?")

Key = tuple[tuple[str, int], ...]


def permutation(saved: Sequence[str], present: Sequence[str]) -> list[int] | None:
    """Find the saved weight for each present variable.

    Parameters
    ----------
    saved : sequence of str
        Weight names in the order of the file.
    present : sequence of str
        Variable names in the order of the model.

    Returns
    -------
    list of int or None
        For each variable the position of its weight in the file; ``None`` if names do not determine it.
    """
    saved_keys, present_keys = canonical(saved), canonical(present)
    positions = {key: position for position, key in enumerate(saved_keys)}
    if len(positions) != len(saved) or set(present_keys) != positions.keys() or len(saved) != len(present):
        return None
    return [positions[key] for key in present_keys]


def canonical(names: Sequence[str]) -> list[Key]:
    """Return the names of one layer's weights without the parts that depend on the process that made them."""
    paths = [name.removesuffix(":0").split("/") for name in names]
    while len(paths) > 1 and all(len(path) > 1 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    ranks = _ranks(paths)
    return [tuple(ranks[tuple(path[:depth]), part] for depth, part in enumerate(path)) for path in paths]


def _ranks(paths: Sequence[Sequence[str]]) -> dict[tuple[tuple[str, ...], str], tuple[str, int]]:
    siblings: dict[tuple[tuple[str, ...], str], set[int]] = {}
    for path in paths:
        for depth, part in enumerate(path):
            stem, counter = split(part)
            siblings.setdefault((tuple(path[:depth]), stem), set()).add(counter)
    order = {place: sorted(counters) for place, counters in siblings.items()}
    return {
        (tuple(path[:depth]), part): (stem, order[tuple(path[:depth]), stem].index(counter))
        for path in paths
        for depth, part in enumerate(path)
        for stem, counter in (split(part),)
    }


def split(part: str) -> tuple[str, int]:
    """Return the stem of a name and its counter, ``0`` where it has none: ``"dense_7"`` is ``("dense", 7)``."""
    found = _COUNTER.fullmatch(part)
    if found is None or found[2] is None:
        return part, 0
    return found[1], int(found[2])
