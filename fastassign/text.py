"""Text for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a line without what a terminal takes for commands: names come from files that are not trusted."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
