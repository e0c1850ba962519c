"""Devices as the planner sees them, and the lane that a schedule plans to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Page-locking works in pages, and so do reads past the page cache.
PAGE_BYTES = 4096


def whole_pages(nbytes: int) -> int:
    """Return a number of bytes rounded up to whole pages."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Device:
    """A device whose memory we can copy to ourselves.

    Attributes
    ----------
    name : str
        TensorFlow's full name of the device.
    kernels_missing : str
        The reason why our kernels don't run on it; empty if they do.
    """

    name: str
    kernels_missing: str = ""

    @property
    def has_kernels(self) -> bool:
        """Whether our kernels, which cast and scatter, run on it."""
        return not self.kernels_missing


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices that hold variables of a load, the CPU aside.

    Attributes
    ----------
    reached : mapping of str to Device
        The devices that we can copy to, by name.
    fallbacks : mapping of str to str
        For each of the others, by name: the missing part and its cost.
    """

    reached: Mapping[str, Device] = field(default_factory=dict)
    fallbacks: Mapping[str, str] = field(default_factory=dict)


NO_DEVICES = Devices()


@dataclass(frozen=True, slots=True)
class Lane:
    """The way to one device: a ring of slots, and a window of the device's memory.

    Attributes
    ----------
    device : str
        TensorFlow's full name of the device.
    slots : int
        Number of slots of host memory in the ring.
    slot_bytes : int
        Size of a slot in bytes.
    window_bytes : int
        The most bytes that batches open at the same time take; a larger batch is opened alone.
    staged : bool
        Whether each slot has a twin on the device, which holds values until they are cast.
    peak_bytes : int
        The most memory of the device that the load takes beyond the variables, in bytes.
    kernels_missing : str
        As for ``Device``.
    """

    device: str
    slots: int
    slot_bytes: int
    window_bytes: int
    staged: bool
    peak_bytes: int
    kernels_missing: str = ""

    @property
    def ring_bytes(self) -> int:
        """Size of the ring in bytes."""
        return self.slots * self.slot_bytes
