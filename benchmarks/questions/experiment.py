"""What an experiment on a card is asked, and what it answers."""

from __future__ import annotations

from typing import Any, NamedTuple

MiB = 1 << 20


class Answer(NamedTuple):
    """What an experiment found.

    Attributes
    ----------
    finding : str
        In words.
    figures : dict
        JSON-ready.
    """

    finding: str
    figures: dict[str, Any]


class Scale(NamedTuple):
    """How much the experiments move.

    Attributes
    ----------
    nbytes : int
        Bytes of a large tensor.
    variables : int
        Variables, where there are many.
    side : int
        Rows and columns of each.
    repeats : int
        How often.
    total_bytes : int
        Bytes behind a rate.
    """

    nbytes: int = 64 * MiB
    variables: int = 200
    side: int = 256
    repeats: int = 5
    total_bytes: int = 1 << 30
