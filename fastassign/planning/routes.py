"""The route of a value into its variable, and the memory that it is built in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastassign.kernels.cast import CASTS, Cast
from fastassign.matching.assignment import Assignment
from fastassign.options import LoadOptions
from fastassign.planning.lanes import Device, Devices

# "owned": into a tensor that TensorFlow allocated, which then becomes the variable's.
# "arena": the same, but many small variables share one allocation.
# "fused": into one tensor of many variables, a slab, which is cut up. On the host one call does that, only in repeated
#     loads; on a device it pays in other loads too, because the slab gets there in one copy.
# "direct": through page-locked slots into a tensor on a device, which then becomes the variable's.
# "eager": into host memory, and to a device by TensorFlow's own copy, one variable after the other.
# "assign": into a host array, and from there by the library's own assign: casts, distributed variables.
# "feed": into host memory that a TensorFlow 1 session is fed with.
# "hook": by a layer's own load_own_variables.
# "convert": computed from arrays of the file, one variable after the other.
Route = Literal["owned", "arena", "fused", "direct", "eager", "assign", "feed", "hook", "convert"]

# TensorFlow aborts the process when it computes on a buffer that is not aligned to this.
ALIGNMENT = 64

# Dtypes whose tensors TensorFlow can make and cut up on the host. Others (float8, 4-bit integers) it only keeps and
# casts.
KERNEL_DTYPES = frozenset(
    {"bfloat16", "bool", "complex64", "complex128", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)

# Dtypes whose tensors TensorFlow allocates on a GPU (kernels of `Empty`; int32 tensors stay on the host), and dtypes
# whose tensors it cuts up there (kernels of `SplitV`).
DEVICE_DTYPES = frozenset({"bfloat16", "float16", "float32", "float64", "int8", "int64", "uint8", "uint64"})
DEVICE_FUSED_DTYPES = frozenset({"bfloat16", "float16", "float32", "float64"})


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """The route and the memory of one variable's new value.

    Attributes
    ----------
    assignment : Assignment
        The record and the target.
    route : Route
        The route of the value into the variable.
    nbytes : int
        Size of the value in bytes, as it stands in the file, decoded.
    arena_bytes : int
        Size of its place in the batch's arena in bytes, rounded up to a multiple of 64; 0 if it has none.
    staged_bytes : int
        Size of its buffers on the host in bytes; 0 if it goes through the slots of a lane.
    lane : str
        The device of the lane that it takes; empty for routes without one.
    casts : bool
        Whether it is cast on the device.
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
        """Size of its place in the slab that is cut up, in bytes: half of it if it is cast on the way there."""
        return self.arena_bytes // 2 if self.casts else self.arena_bytes


def place(
    assignment: Assignment, options: LoadOptions, *, repeated: bool, devices: Devices, slot_bytes: int
) -> Placement:
    """Choose the route of one value, and measure its buffers.

    Parameters
    ----------
    assignment : Assignment
        The record and the target.
    options : LoadOptions
        The options of the load.
    repeated : bool
        Whether the load will be repeated.
    devices : Devices
        The devices that we can copy to.
    slot_bytes : int
        Size of a slot of their lanes in bytes.
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
        # It is there twice: as it stands in the file, and in the variable's dtype.
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
    """Tell whether a value can take a lane: only if it is stored as it is, for a dtype that lives on the device."""
    target, record = assignment.target, assignment.record
    if (
        options.device.route == "eager"
        or target.resource is None
        or not record.extents
        or target.dtype not in DEVICE_DTYPES
    ):
        return False
    if assignment.fit == "cast":
        # An element that lies across two extents would be cut in the middle.
        return device.has_kernels and cast_of(assignment) is not None and len(record.extents) == 1
    return True


def cast_of(assignment: Assignment) -> Cast | None:
    """Return the cast of a value, if our kernels do it as the library does, bit for bit; otherwise ``None``."""
    return CASTS.get(("float32", assignment.target.dtype)) if assignment.record.dtype == "<f4" else None


def _on_device(assignment: Assignment, options: LoadOptions, *, repeated: bool, slot_bytes: int) -> Placement:
    nbytes, lane = assignment.record.nbytes, assignment.target.device
    casts = assignment.fit == "cast"
    # A slab is cast as a whole, so a value keeps the index of its first element: its offset has to be a multiple of 64
    # bytes both in the wide slab and in the narrow one.
    room = -(-nbytes // (2 * ALIGNMENT)) * 2 * ALIGNMENT if casts else aligned_size(nbytes)
    is_small = repeated or options.device.route == "fused" or nbytes <= options.device.fused_bytes
    # Beside the value, a slot holds its row of a kernel's table, and the bytes that round the table up.
    fits = room + 2 * ALIGNMENT <= slot_bytes
    if is_small and fits and assignment.target.dtype in DEVICE_FUSED_DTYPES and options.device.route != "direct":
        return Placement(assignment, "fused", nbytes, room, 0, lane, casts)
    return Placement(assignment, "direct", nbytes, 0, 0, lane, casts)


def aligned_size(nbytes: int) -> int:
    """Return a number of bytes rounded up to a multiple of 64."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
