"""Text for a terminal: lines without control characters, tables that fit its width."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Sequence

_GAP = "  "
# Where a line starts that continues the one above.
_INDENT = "    "
# Columns are not made narrower than this, however narrow the terminal.
_LEAST = 10


def printable(text: str) -> str:
    """Escape characters that a terminal would take for commands, because names come from untrusted files."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def line_width() -> int:
    """Return the columns of the terminal, or ``COLUMNS``; 80 where output goes elsewhere."""
    return shutil.get_terminal_size((80, 24)).columns


def clipped(text: str, width: int) -> str:
    """Shorten a text in the middle, because names differ at both ends.

    >>> clipped("encoder/block_1/attention/kernel", 20)
    'encoder/...on/kernel'
    """
    if len(text) <= width:
        return text
    kept = max(width - 3, 2)
    return f"{text[: kept // 2]}...{text[len(text) - (kept + 1) // 2 :]}"


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Break a text into lines between its words, the later ones indented; words longer than a line are clipped."""
    words = " ".join(clipped(word, width - len(indent)) for word in printable(text).split(" "))
    lines = textwrap.wrap(words, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    names: Collection[int] = (),
    width: int | None = None,
) -> str:
    """Draw a table of one line a row; if it is too wide, the widest columns are clipped.

    Parameters
    ----------
    head : sequence of str
        The names of the columns.
    rows : sequence of sequence of str
        The cells.
    right : collection of int
        The columns that are aligned to the right.
    names : collection of int
        The columns that hold names, which are clipped before the others.
    width : int, optional
        The columns that a line may take; ``line_width()`` if not given.
    """
    lines = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = (width or line_width()) - len(_GAP) * (len(widths) - 1)
    widths = _narrowed(widths, room, names)
    widths = _narrowed(widths, room, range(len(widths)))
    return "\n".join(
        _GAP.join(
            clipped(cell, w).rjust(w) if number in right else clipped(cell, w).ljust(w)
            for number, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def fields(pairs: Sequence[tuple[str, Sequence[str]]], *, width: int | None = None) -> str:
    """Draw names and what they stand for, each as lines beside its name; lines are wrapped.

    Parameters
    ----------
    pairs : sequence of (str, sequence of str)
        Names, and lines of text.
    width : int, optional
        The columns that a line may take; ``line_width()`` if not given.
    """
    first = max((len(name) for name, _ in pairs), default=0)
    room = max((width or line_width()) - first - len(_GAP), 2 * _LEAST)
    return "\n".join(
        f"{'' if number else name:{first}}{_GAP}{line}"
        for name, texts in pairs
        for number, line in enumerate(line for text in texts for line in wrapped(text, room, _INDENT))
    )


def _narrowed(widths: list[int], room: int, columns: Collection[int]) -> list[int]:
    """Cut the widest of some columns to one width, so that all columns fit into the room, as far as that helps."""
    most = max((widths[number] for number in columns), default=0)
    found = widths
    while most > _LEAST and sum(found) > room:
        most -= 1
        found = [min(w, most) if number in columns else w for number, w in enumerate(widths)]
    return found
