"""How a value gets into its variable, and what memory it is built in on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastassign.matching.assignment import Assignment
from fastassign.options import LoadOptions

# "owned": into a tensor that TensorFlow allocated, which then becomes the variable's.
# "arena": the same, but one allocation shared by many small variables.
# "fused": into one tensor of many variables, which one call cuts up and assigns; for loads that come again.
# "assign": into a host array, and from there by the library's own assign: casts, distributed variables.
# "feed": into host memory that a TensorFlow 1 session is fed with.
# "hook": by a layer's own load_own_variables; "convert": made of arrays of the file, one variable after the other.
Route = Literal["owned", "arena", "fused", "assign", "feed", "hook", "convert"]

# TensorFlow aborts the process when it computes on a buffer that is not aligned to this.
ALIGNMENT = 64

# Dtypes that TensorFlow has host kernels for, to make tensors and to cut them up; others (float8, 4-bit integers) are
# only kept and cast.
KERNEL_DTYPES = frozenset(
    {"bfloat16", "bool", "complex64", "complex128", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where one variable's new value is built.

    Attributes
    ----------
    assignment : Assignment
        Record and target.
    route : Route
        How the value gets into the variable.
    nbytes : int
        Bytes of the value as it stands in the file, decoded.
    arena_bytes : int
        Bytes of its place in the batch's arena, the step to the next multiple of 64 included; 0 if it has none.
    staged_bytes : int
        Bytes of its buffers.
    """

    assignment: Assignment
    route: Route
    nbytes: int
    arena_bytes: int
    staged_bytes: int


def place(assignment: Assignment, options: LoadOptions, *, repeated: bool) -> Placement:
    """Choose the route of one value, and measure its buffers."""
    nbytes = assignment.record.nbytes
    route = _route_of(assignment, options, repeated=repeated)
    if route not in {"arena", "fused", "feed"}:
        return Placement(assignment, route, nbytes, 0, nbytes)
    if assignment.fit == "cast":
        # As it stands in the file, and as the variable takes it.
        room = aligned(assignment.target.nbytes)
        return Placement(assignment, route, nbytes, room, room + nbytes)
    room = aligned(nbytes)
    return Placement(assignment, route, nbytes, room, room)


def _route_of(assignment: Assignment, options: LoadOptions, *, repeated: bool) -> Route:
    target, record = assignment.target, assignment.record
    if target.graph is not None:
        return "feed"
    if target.resource is None or assignment.fit == "cast":
        return "assign"
    if (
        repeated
        and "/device:CPU:" in target.device
        and target.dtype in KERNEL_DTYPES
        and record.extents  # neither decoded by h5py nor without elements
    ):
        return "fused"
    return "arena" if record.nbytes <= options.arena_bytes else "owned"


def aligned(nbytes: int) -> int:
    """Return the next multiple of 64."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
