"""What a load has decided, as the rooms that carry it out need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fastassign.catalog.origin import Origin
from fastassign.matching.assignment import Matching
from fastassign.options import LoadOptions
from fastassign.planning.schedule import Schedule
from fastassign.runtime import Runtime


class Work(Protocol):
    """A load to carry out; ``fastassign.Plan`` is one.

    Attributes
    ----------
    origin : Origin
        Where the values come from.
    matching : Matching
        Which record goes into which variable.
    options : LoadOptions
        The knobs.
    schedule : Schedule
        The order, the memory and the ways.
    session : tf.compat.v1.Session or None
        Runs the assignments, where the variables belong to a TensorFlow 1 graph.
    runtime : Runtime
        The parts of the process to work with.
    atomic : bool
        Whether a load that fails leaves all variables as they were.
    skip_mismatch : bool
        Whether an object whose own method fails is skipped.
    nbytes : int
        Bytes that are read from the origin, decoded.
    seconds : mapping of str to float
        How long the stages before the execution took.
    """

    @property
    def origin(self) -> Origin: ...  # noqa: D102 - see the class

    @property
    def matching(self) -> Matching: ...  # noqa: D102

    @property
    def options(self) -> LoadOptions: ...  # noqa: D102

    @property
    def schedule(self) -> Schedule: ...  # noqa: D102

    @property
    def session(self) -> Any: ...  # noqa: D102

    @property
    def runtime(self) -> Runtime: ...  # noqa: D102

    @property
    def atomic(self) -> bool: ...  # noqa: D102

    @property
    def skip_mismatch(self) -> bool: ...  # noqa: D102

    @property
    def nbytes(self) -> int: ...  # noqa: D102

    @property
    def seconds(self) -> Mapping[str, float]: ...  # noqa: D102
