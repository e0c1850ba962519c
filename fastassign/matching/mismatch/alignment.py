"""Parts of a file paired with parts of a model by names and shapes: a guess that explains a mismatch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastassign.matching.legacy import weight_names

Shape: TypeAlias = tuple[int, ...]

# Comparing two names takes about a tenth of a millisecond.
_MOST_COMPARED = 1000


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """A layer of a legacy file, or an object of a Keras 3 file; or the same in a model.

    Attributes
    ----------
    name : str
        The layer's name, or the path in the file.
    weights : tuple of (str, shape)
        The names below it, and the shapes.
    patterns : tuple of str
        In a model: patterns that match the whole group, and nothing else.
    """

    name: str
    weights: tuple[tuple[str, Shape], ...]
    patterns: tuple[str, ...] = ()

    @property
    def look(self) -> tuple[Shape, ...]:
        """Its shapes, in an order that freezing does not change."""
        return tuple(sorted(shape for _, shape in self.weights))


Pair: TypeAlias = tuple[WeightGroup | None, WeightGroup | None]

# Names by their stem, in the order of the counters.
_Stems: TypeAlias = dict[str, list[str]]


def pair(saved: Sequence[WeightGroup], present: Sequence[WeightGroup], *, by_rank: bool) -> list[Pair]:
    """Pair the parts of both sides, in the order of the model; a part without a counterpart comes with ``None``.

    Parameters
    ----------
    saved, present : sequence of WeightGroup
        The parts of the file, and those of the model.
    by_rank : bool
        Whether ``dense_3`` and ``dense_4`` on one side may be ``dense_7`` and ``dense_8`` on the other: automatic names
        are counted on as long as the process lives.
    """
    matched: dict[int, int] = {}
    stems = (_by_stem(saved), _by_stem(present)) if by_rank else ({}, {})
    known = (_names(saved, stems, 0), _names(present, stems, 1))
    _join_equal(matched, saved, present, known, alike=True)
    _join_alike(matched, saved, present)
    _join_equal(matched, saved, present, known, alike=False)
    _join_near(matched, saved, present)
    rows: list[tuple[float, Pair]] = [
        (j, (saved[matched[j]] if j in matched else None, part)) for j, part in enumerate(present)
    ]
    places = {i: j for j, i in matched.items()}
    place = -1.0
    for i, part in enumerate(saved):
        place = float(places.get(i, place))
        if i not in places:
            rows.append((place + 0.5, (part, None)))
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


def _names(parts: Sequence[WeightGroup], stems: tuple[_Stems, _Stems], side: int) -> list[Any]:
    """Return the keys to compare parts by: their names, or the ranks of these where counters have moved on."""
    known: list[Any] = []
    for part in parts:
        stem, _ = weight_names.split(part.name)
        one, other = (each.get(stem, []) for each in stems)
        moved = len(one) == len(other) and set(one) != set(other)
        known.append((stem, stems[side][stem].index(part.name)) if moved else part.name)
    return known


def _by_stem(parts: Sequence[WeightGroup]) -> _Stems:
    found: dict[str, list[tuple[int, str]]] = {}
    for part in parts:
        stem, counter = weight_names.split(part.name)
        found.setdefault(stem, []).append((counter, part.name))
    return {stem: [name for _, name in sorted(numbered)] for stem, numbered in found.items()}


def _join_equal(
    matched: dict[int, int],
    saved: Sequence[WeightGroup],
    present: Sequence[WeightGroup],
    known: tuple[list[Any], list[Any]],
    *,
    alike: bool,
) -> None:
    taken = set(matched.values())
    places = {name: i for i, name in enumerate(known[0]) if i not in taken}
    for j, name in enumerate(known[1]):
        i = places.get(name)
        if j not in matched and i is not None and (not alike or saved[i].look == present[j].look):
            matched[j] = i


def _left(
    matched: dict[int, int], saved: Sequence[WeightGroup], present: Sequence[WeightGroup]
) -> tuple[list[int], list[int]]:
    taken = set(matched.values())
    return [i for i in range(len(saved)) if i not in taken], [j for j in range(len(present)) if j not in matched]


def _join_alike(matched: dict[int, int], saved: Sequence[WeightGroup], present: Sequence[WeightGroup]) -> None:
    """Pair parts with the same shapes: by order if both sides have as many, else by the nearest names."""
    left = _left(matched, saved, present)
    for look in {present[j].look: None for j in left[1]}:
        one = [i for i in left[0] if saved[i].look == look]
        other = [j for j in left[1] if present[j].look == look]
        if len(one) == len(other) or len(one) * len(other) > _MOST_COMPARED:
            matched.update(zip(other, one, strict=False))
        else:
            matched.update(_nearest(one, other, saved, present, least=0.0))


def _join_near(matched: dict[int, int], saved: Sequence[WeightGroup], present: Sequence[WeightGroup]) -> None:
    one, other = _left(matched, saved, present)
    if len(one) * len(other) <= _MOST_COMPARED:
        matched.update(_nearest(one, other, saved, present, least=0.6))


def _nearest(
    one: Iterable[int],
    other: Iterable[int],
    saved: Sequence[WeightGroup],
    present: Sequence[WeightGroup],
    *,
    least: float,
) -> dict[int, int]:
    ratios = sorted(
        ((difflib.SequenceMatcher(None, saved[i].name, present[j].name).ratio(), -i, -j) for i in one for j in other),
        reverse=True,
    )
    found: dict[int, int] = {}
    used: set[int] = set()
    for ratio, i, j in ratios:
        if ratio >= least and -j not in found and -i not in used:
            found[-j] = -i
            used.add(-i)
    return found
