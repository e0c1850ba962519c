"""The diff that explains a mismatch: file and model side by side, and the call that would load the layers that fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastassign.matching.mismatch.alignment import Pair, Shape, WeightGroup, pair
from fastassign.text import line_width, printable, table

# A terminal's height, and what a line can hold.
_MOST_ROWS, _MOST_SHAPES, _MOST_NAMES = 20, 3, 6


class Row(NamedTuple):
    """One line: a name and its shapes in the file, the same in the model, and how the two differ."""

    saved: str
    saved_shape: str
    present: str
    present_shape: str
    remark: str


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences between a file and a model; ``print`` it.

    Layers with different names on the two sides are paired by shapes and the nearest names, which is a guess.

    Attributes
    ----------
    rows : tuple of Row
        Each layer, or weight of it, that is not the same on both sides.
    equal : int
        How many layers are the same.
    rename : mapping of str to (str or None)
        For ``LoadOptions(rename=...)``: the layers that only have another name.
    exclude : tuple of str
        For ``LoadOptions(exclude=...)``: the layers that the file does not have, or not in that shape.
    loads : int
        How many layers a load with both would fill.
    """

    rows: tuple[Row, ...]
    equal: int
    rename: Mapping[str, str | None] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    loads: int = 0

    @property
    def call(self) -> str:
        """The call that loads everything that fits; empty where no call of this kind helps."""
        if not self.loads or not (self.rename or self.exclude):
            return ""
        options = []
        if self.rename:
            short = len(self.rename) <= _MOST_NAMES
            options.append(f"rename={printable(repr(dict(self.rename))) if short else 'error.diff.rename'}")
        if self.exclude:
            short = len(self.exclude) <= _MOST_NAMES
            options.append(f"exclude={printable(repr(self.exclude)) if short else 'error.diff.exclude'}")
        return f"fa.load_weights(model, path, options=fa.LoadOptions({', '.join(options)}))"

    def __str__(self) -> str:
        """Return the rows as a table, only the first ones if there are many."""
        head = Row("in the file", "shape", "in the model", "shape", "")
        # Errors show it indented by two.
        lines = [table(head, self.rows[:_MOST_ROWS], width=line_width() - 2)]
        if len(self.rows) > _MOST_ROWS:
            lines.append(f"... and {len(self.rows) - _MOST_ROWS} more")
        lines.append(f"{self.equal} {'is' if self.equal == 1 else 'are'} the same on both sides")
        return "\n".join(lines)


def make_diff(saved: Sequence[WeightGroup], present: Sequence[WeightGroup], *, by_rank: bool) -> Diff:
    """Compare the parts of a file with those of a model.

    Parameters
    ----------
    saved, present : sequence of WeightGroup
        The parts of the file, and those of the model.
    by_rank : bool
        Whether the counters in automatic names may differ: those of layers do, paths in Keras 3 files do not.
    """
    pairs = pair(saved, present, by_rank=by_rank)
    fitting = [(one, other) for one, other in pairs if one is not None and other is not None and one.look == other.look]
    fits = {other.name for _, other in fitting}
    rename: dict[str, str | None] = {one.name: other.name for one, other in fitting if one.name != other.name}
    # A layer of the file whose own name goes to a renamed one is left out.
    for part in saved:
        if part.name in rename.values() and part.name not in rename:
            rename[part.name] = None
    return Diff(
        rows=tuple(row for each in pairs for row in _rows(each)),
        equal=len(fitting) - sum(one.name != other.name for one, other in fitting),
        rename=rename,
        exclude=tuple(pattern for part in present if part.name not in fits for pattern in part.patterns),
        loads=len(fitting),
    )


def _rows(each: Pair) -> Iterator[Row]:
    one, other = each
    if one is None or other is None:
        part = one or other
        if part is not None:
            cells = (part.name, _shapes(part))
            yield Row(*cells, "", "", "not in the model") if one else Row("", "", *cells, "not in the file")
        return
    renamed = one.name != other.name
    if one.look == other.look:
        if renamed:
            yield Row(one.name, _shapes(one), other.name, _shapes(other), "another name?")
        return
    if len(one.weights) != len(other.weights):
        remark = f"{len(one.weights)} weights, not {len(other.weights)}"
        yield Row(one.name, _shapes(one), other.name, _shapes(other), remark)
        return
    for (a, shape), (b, wanted) in zip(one.weights, other.weights, strict=True):
        if shape != wanted:
            remark = "another name and shape" if renamed else "another shape"
            yield Row(f"{one.name}/{a}", str(shape), f"{other.name}/{b}", str(wanted), remark)


def _shapes(part: WeightGroup) -> str:
    shapes: list[Shape] = [shape for _, shape in part.weights]
    more = f" and {len(shapes) - _MOST_SHAPES} more" if len(shapes) > _MOST_SHAPES else ""
    return ", ".join(map(str, shapes[:_MOST_SHAPES])) + more
