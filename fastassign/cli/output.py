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
    print(f"{type(error).__name__}: {printable(error.summary)}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        if note != f"file: {error.file}" or str(error.file) not in error.summary:
            print(textwrap.indent(note, "  "), file=sys.stderr)


def say(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def show_table(
    title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, right: Collection[int] = (), note: str = ""
) -> None:
    """Print a table with a line above it, and a note below."""
    width = line_width()
    lines = [*wrapped(title, width), table(head, rows, right=right), *(wrapped(note, width) if note else ())]
    print("\n".join(lines))


def quiet_tensorflow() -> None:
    """Ask TensorFlow, before it is imported, to log errors only."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
