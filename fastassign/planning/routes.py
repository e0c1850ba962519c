"""How a value gets into its variable, and what memory it is built in on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastassign.kernels.cast import CASTS, Cast
from fastassign.matching.assignment import Assignment
from fastassign.options import LoadOptions
from fastassign.planning.lanes import Device, Devices

# "owned": into a tensor that TensorFlow allocated, which then becomes the variable's.
# "arena": the same, but one allocation shared by many small variables.
# "fused": into one tensor of many variables, which is cut up: on a host by one call, for loads that come again; on a
#     device also in others, because it comes there in one copy.
# "direct": through page-locked slots into a tensor on a device, which then becomes the variable's.
# "eager": into host memory, and to a device by TensorFlow's own copy, one variable after the other.
# "assign": into a host array, and from there by the library's own assign: casts, distributed variables.
# "feed": into host memory that a TensorFlow 1 session is fed with.
# "hook": by a layer's own load_own_variables; "convert": made of arrays of the file, one variable after the other.
Route = Literal["owned", "arena", "fused", "direct", "eager", "assign", "feed", "hook", "convert"]

# TensorFlow aborts the process when it computes on a buffer that is not aligned to this.
ALIGNMENT = 64

# Dtypes that TensorFlow has host kernels for, to make tensors and to cut them up; others (float8, 4-bit integers) are
# only kept and cast.
KERNEL_DTYPES = frozenset(
    {"bfloat16", "bool", "complex64", "complex128", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)

# Dtypes whose tensors TensorFlow allocates on a GPU (kernels of `Empty`; int32 tensors stay on the host), and those
# that it cuts up there (kernels of `SplitV`).
DEVICE_DTYPES = frozenset({"bfloat16", "float16", "float32", "float64", "int8", "int64", "uint8", "uint64"})
DEVICE_FUSED_DTYPES = frozenset({"bfloat16", "float16", "float32", "float64"})


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
        Bytes of its buffers on the host; 0 where it goes through the slots of a lane.
    lane : str
        The device that it is copied to by ourselves; empty for the other routes.
    casts : bool
        Whether it is cast on that device.
    """

    assignment: Assignment
    route: Route
    nbytes: int
    arena_bytes: int
    staged_bytes: int
    lane: str = ""
    casts: bool = False

    @property
    def slab_bytes(self) -> int:
        """Bytes of its place in the slab that is cut up: what is cast on the way there takes half."""
        return self.arena_bytes // 2 if self.casts else self.arena_bytes


def place(
    assignment: Assignment, options: LoadOptions, *, repeated: bool, devices: Devices, slot_bytes: int
) -> Placement:
    """Choose the route of one value, and measure its buffers.

    Parameters
    ----------
    assignment : Assignment
        Record and target.
    options : LoadOptions
        The knobs.
    repeated : bool
        Whether the load comes again and again.
    devices : Devices
        The devices that we can copy to.
    slot_bytes : int
        Bytes of a slot on the way there.
    """
    target, nbytes = assignment.target, assignment.record.nbytes
    device = devices.reached.get(target.device)
    if device is not None and is_reachable(assignment, options, device):
        return _on_device(assignment, options, repeated=repeated, slot_bytes=slot_bytes)
    route = _on_host(assignment, options, repeated=repeated)
    is_small = route == "eager" and nbytes <= options.arena_bytes
    if route not in {"arena", "fused", "feed"} and not is_small:
        return Placement(assignment, route, nbytes, 0, nbytes)
    if assignment.fit == "cast":
        # As it stands in the file, and as the variable takes it.
        room = aligned_size(target.nbytes)
        return Placement(assignment, route, nbytes, room, room + nbytes)
    room = aligned_size(nbytes)
    return Placement(assignment, route, nbytes, room, room)


def _on_host(assignment: Assignment, options: LoadOptions, *, repeated: bool) -> Route:
    target, record = assignment.target, assignment.record
    if target.graph is not None:
        return "feed"
    if target.resource is None or assignment.fit == "cast":
        return "assign"
    is_on_host = "/device:CPU:" in target.device
    if target.device and not is_on_host:
        return "eager"
    is_stored = bool(record.extents)  # neither decoded by h5py nor without elements
    if repeated and is_on_host and target.dtype in KERNEL_DTYPES and is_stored:
        return "fused"
    return "arena" if record.nbytes <= options.arena_bytes else "owned"


def is_reachable(assignment: Assignment, options: LoadOptions, device: Device) -> bool:
    """Tell whether a value can go to a device by a lane: only if it is stored as it is, for a dtype at home there."""
    target, record = assignment.target, assignment.record
    if (
        options.device.route == "eager"
        or target.resource is None
        or not record.extents
        or target.dtype not in DEVICE_DTYPES
    ):
        return False
    if assignment.fit == "cast":
        # Elements that lie across two extents would be cut in the middle.
        return device.has_kernels and cast_of(assignment) is not None and len(record.extents) == 1
    return True


def cast_of(assignment: Assignment) -> Cast | None:
    """Return the cast that kernels of ours do as the library does it, bit for bit; None if it is no such."""
    return CASTS.get(("float32", assignment.target.dtype)) if assignment.record.dtype == "<f4" else None


def _on_device(assignment: Assignment, options: LoadOptions, *, repeated: bool, slot_bytes: int) -> Placement:
    nbytes, lane = assignment.record.nbytes, assignment.target.device
    casts = assignment.fit == "cast"
    # What is cast in place of another keeps the order of its elements: so both have to begin at multiples of 64 bytes.
    room = -(-nbytes // (2 * ALIGNMENT)) * 2 * ALIGNMENT if casts else aligned_size(nbytes)
    is_small = repeated or options.device.route == "fused" or nbytes <= options.device.fused_bytes
    # Beside the value a slot holds the row of a table that a kernel needs, and what rounds it up.
    fits = room + 2 * ALIGNMENT <= slot_bytes
    if is_small and fits and assignment.target.dtype in DEVICE_FUSED_DTYPES and options.device.route != "direct":
        return Placement(assignment, "fused", nbytes, room, 0, lane, casts)
    return Placement(assignment, "direct", nbytes, 0, 0, lane, casts)


def aligned_size(nbytes: int) -> int:
    """Return the next multiple of 64."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
