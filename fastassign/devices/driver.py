"""The interface to a device's driver: protocols that CUDA's driver fulfils, and in tests a simulated one.

No other module of fastassign needs more of a driver than this page has. A further kind of device is one more module
beside ``cuda``.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from fastassign.kernels.scatter import Scatter

# The hint of errors that a failing device causes.
LOST_HINT = "a device that was lost comes back with a new process; nvidia-smi and dmesg tell what happened"


class Fence(Protocol):
    """A mark in a stream."""

    def wait(self) -> None:
        """Wait until the device has done all work that was put into the stream before the mark.

        Raises
        ------
        DeviceFailed
            The device reports an error; any of its earlier work may have caused it.
        """


class Stream(Protocol):
    """A queue of work that one device does in order. A thread enters it as a context to add work."""

    def __enter__(self) -> Stream:
        """Let the calling thread add work."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the stream's context."""

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Queue a copy from host memory to device memory; return before it is done.

        Parameters
        ----------
        destination, source : int
            Addresses on the device and on the host.
        nbytes : int
            Bytes to copy.
        """

    def scatter(self, work: Scatter) -> None:
        """Queue the kernel that scatters and casts; return before it is done."""

    def record(self) -> Fence:
        """Return a mark behind all work that is in the stream now."""

    def close(self) -> None:
        """Destroy the stream. The caller has waited for all of its work."""


class Driver(Protocol):
    """Access to all devices of one kind."""

    def serves(self, device: str) -> bool:
        """Whether the driver reaches a device, given TensorFlow's full name."""

    def kernels_missing(self) -> str:
        """Return why fastassign's kernels can't run on its devices; empty if they can."""

    def ordinal_of(self, device: str, address: int) -> int:
        """Return the driver's number of a device, given TensorFlow's name and the address of memory on it."""

    def stream(self, ordinal: int) -> Stream:
        """Make a stream on a device."""

    def lock(self, ordinal: int, address: int, nbytes: int) -> None:
        """Page-lock host memory, for all devices.

        Raises
        ------
        NotPageLocked
            The system does not allow it.
        """

    def unlock(self, ordinal: int, address: int) -> None:
        """Undo ``lock``."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The answer of ``find_driver`` where there is no usable driver.

    Attributes
    ----------
    reason : str
        Why there is none.
    hint : str
        How to get one.
    """

    reason: str
    hint: str
