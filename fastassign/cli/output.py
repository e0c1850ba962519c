"""Text that the commands print."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Collection, Sequence

from fastassign.errors import FastAssignError
from fastassign.text import line_width, printable, table, wrapped


def explain(error: FastAssignError) -> None:
    """Print an error to standard error, with its notes."""
    lines = f"{type(error).__name__}: {error.summary}".split("\n")
    for note in getattr(error, "__notes__", ()):
        if note != f"file: {error.file}" or str(error.file) not in error.summary:
            lines += textwrap.indent(note, "  ").split("\n")
    print("\n".join(map(printable, lines)), file=sys.stderr)


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def show_table(
    title: str,
    head: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    *,
    right: Collection[int] = (),
    names: Collection[int] = (),
    note: str = "",
) -> None:
    """Print a table (``fastassign.text.table``) with a line above it, and a note below."""
    width = line_width()
    below = wrapped(note, width) if note else ()
    print("\n".join([*wrapped(title, width), table(head, rows, right=right, names=names), *below]))


def quiet_tensorflow() -> None:
    """Ask TensorFlow, before it is imported, to log errors only."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
