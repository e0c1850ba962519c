"""The order of the weights inside a composite layer, where whole names do not determine it.

The layers inside have been renamed, so whole names can't be compared. Names still tell two things: which weights
belong together (those with the same path but for the last part), and their roles (the last part: ``kernel``,
``gamma``). Freezing moves whole runs of a layer's weights; it never splits a layer or exchanges roles. So

* a layer inside with roles and shapes that no other has is found at any position;
* where the file also has the model's configuration, the order of the layers in it counts;
* else, among layers that look alike, positions count, if they split no layer and if the model's own order does not
  depend on the layers that are frozen in it now. Otherwise there are several ways to load the file, and no way to
  choose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]
Weights: TypeAlias = Sequence[tuple[str, Shape]]


class Ambiguous(Exception):
    """There are several ways to load the weights, and nothing to choose by."""


def order_by_structure(
    saved: Weights,
    present: Weights,
    thawed: Sequence[int],
    in_order: Callable[[Sequence[str]], Sequence[str] | None] = lambda _: None,
) -> list[int] | None:
    """Find the saved weight for each variable by shapes, by roles and by which weights belong together.

    Parameters
    ----------
    saved : sequence of (str, shape)
        Names and shapes of the weights in the order of the file.
    present : sequence of (str, shape)
        Names and shapes of the variables in the order that the model has now.
    thawed : sequence of int
        The variables, as indices into ``present``, in the order that they have when nothing is frozen.
    in_order : callable
        Sorts the paths of the file, names without their last part, into the order of the saved model, if it is known.

    Returns
    -------
    list of int or None
        For each variable the position of its weight in the file; ``None``: stock's rule, by position, holds.

    Raises
    ------
    Ambiguous
        Stock would load the weights by position, which is one way of several, or a wrong one.
    """
    if len(saved) != len(present):
        return None
    found = _by_unique_parts(saved, present)
    if found is not None:
        return found
    found = _by_known_order(saved, present, thawed, in_order)
    if found is not None:
        return found
    positions = list(range(len(present)))
    if not _shapes_fit(saved, present, positions):
        return None
    # If nothing was frozen when the file was saved, its i-th weight is that of the variable thawed[i].
    unfrozen = [0] * len(present)
    for position, variable in enumerate(thawed):
        unfrozen[variable] = position
    ways = [
        way
        for way in ([positions] if unfrozen == positions else [positions, unfrozen])
        if _shapes_fit(saved, present, way) and _parts_fit(saved, present, way)
    ]
    if len(ways) != 1:
        raise Ambiguous
    return None if ways[0] is positions else ways[0]


def _parts(weights: Weights) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(weights):
        parts.setdefault(name.rpartition("/")[0], []).append(index)
    return parts


def _role(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(":0")


def _by_unique_parts(saved: Weights, present: Weights) -> list[int] | None:
    """Match part by part, if no two parts look alike and both sides have the same parts."""
    sides = []
    for weights in (saved, present):
        looks = {}
        for members in _parts(weights).values():
            looks[_look(weights, members)] = members
        if len(looks) != len(_parts(weights)):
            return None
        sides.append(looks)
    if sides[0].keys() != sides[1].keys():
        return None
    order = [0] * len(present)
    for look, members in sides[1].items():
        for variable, position in zip(members, sides[0][look], strict=True):
            order[variable] = position
    return order


def _by_known_order(
    saved: Weights,
    present: Weights,
    thawed: Sequence[int],
    in_order: Callable[[Sequence[str]], Sequence[str] | None],
) -> list[int] | None:
    """Match part by part in the order that both models have, if each looks like its counterpart."""
    parts = _parts(saved)
    own = [[thawed[i] for i in members] for members in _parts([present[i] for i in thawed]).values()]
    ordered = in_order(list(parts)) if len(parts) == len(own) else None
    order = [0] * len(present)
    for name, variables in zip(ordered or (), own, strict=False):
        if _look(saved, parts[name]) != _look(present, variables):
            return None
        for variable, position in zip(variables, parts[name], strict=True):
            order[variable] = position
    return order if ordered else None


def _look(weights: Weights, members: Sequence[int]) -> tuple[tuple[str, Shape], ...]:
    return tuple((_role(weights[i][0]), weights[i][1]) for i in members)


def _shapes_fit(saved: Weights, present: Weights, way: Sequence[int]) -> bool:
    return all(saved[position][1] == shape for position, (_, shape) in zip(way, present, strict=True))


def _parts_fit(saved: Weights, present: Weights, way: Sequence[int]) -> bool:
    """Whether a way to load the weights keeps their roles, and keeps weights together that belong together.

    Where the two sides do not even have the same roles or parts (another version of Keras named them), there is nothing
    to compare, and the way counts as one that does.
    """
    roles = [[_role(name) for name, _ in weights] for weights in (saved, present)]
    if Counter(roles[0]) == Counter(roles[1]) and [roles[0][position] for position in way] != roles[1]:
        return False
    parts = [_parts(weights) for weights in (saved, present)]
    if Counter(map(len, parts[0].values())) != Counter(map(len, parts[1].values())):
        return True
    together = {frozenset(members) for members in parts[0].values()}
    return all(frozenset(way[i] for i in members) in together for members in parts[1].values())
