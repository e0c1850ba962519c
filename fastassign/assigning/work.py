"""A planned load, as far as its execution needs to know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fastassign.catalog.origin import Origin
from fastassign.matching.assignment import Matching
from fastassign.options import LoadOptions
from fastassign.planning.schedule import Schedule
from fastassign.runtime import Runtime


class Work(Protocol):
    """A load to execute; ``fastassign.Plan`` is one.

    Attributes
    ----------
    origin : Origin
        The origin of the values.
    matching : Matching
        The records and the variables that they go into.
    options : LoadOptions
        The options of the load.
    schedule : Schedule
        The batches, the lanes to devices, and the memory that they take.
    session : tf.compat.v1.Session or None
        The session that runs the assignments, if the variables belong to a TensorFlow 1 graph.
    runtime : Runtime
        The parts of the process that the execution works with.
    atomic : bool
        Whether a load that fails leaves all variables as they were.
    skip_mismatch : bool
        Whether an object whose own method fails is skipped.
    nbytes : int
        Bytes that the load reads from the origin, decoded.
    seconds : mapping of str to float
        The duration of each stage before the execution.
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
