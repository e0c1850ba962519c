"""The scale of an experiment on a card, and its answer."""

from __future__ import annotations

from typing import Any, NamedTuple

MiB = 1 << 20


class Answer(NamedTuple):
    """The answer of an experiment.

    Attributes
    ----------
    finding : str
        The answer in words.
    figures : dict
        The figures behind it, JSON-ready.
    """

    finding: str
    figures: dict[str, Any]


class Scale(NamedTuple):
    """The sizes of the experiments.

    Attributes
    ----------
    nbytes : int
        Bytes of a large tensor.
    variables : int
        Number of variables, in experiments with many.
    side : int
        Rows and columns of each variable.
    repeats : int
        Runs of each measurement.
    total_bytes : int
        Bytes to copy when a rate is measured.
    """

    nbytes: int = 64 * MiB
    variables: int = 200
    side: int = 256
    repeats: int = 5
    total_bytes: int = 1 << 30
