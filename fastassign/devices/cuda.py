"""The one seam to CUDA: page-locking, streams, copies and fences.

Everything else works with the protocols of this page, so that tests can put a simulated device in CUDA's place.

Behind them stand NVIDIA's own bindings of the driver (the package ``cuda-bindings``), not the CUDA runtime: its driver
API needs nothing but the driver, whichever CUDA TensorFlow was built with. TensorFlow and the CUDA runtime both use a
device's *primary context* (source: ``CudaContext::Create`` in OpenXLA), and so does this: a thread that TensorFlow
finds in another context ends the process.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from fastassign.errors import DeviceFailed, NotPageLocked, annotate
from fastassign.kernels.scatter import Kind

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("fastassign")

# What to do about a device that fails.
LOST_HINT = "a device that was lost comes back with a new process; nvidia-smi and dmesg tell what happened"


class Fence(Protocol):
    """A mark in a stream."""

    def wait(self) -> None:
        """Wait until everything is done that was put into the stream before it.

        Raises
        ------
        DeviceFailed
            The device reports an error, of anything that went before.
        """


class Stream(Protocol):
    """A queue of work for one device, which is done in order; a context in which a thread may add to it."""

    def __enter__(self) -> Stream:
        """Make this thread one that may add to it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave."""

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Copy from host memory to the device's; returns before that is done.

        Parameters
        ----------
        destination, source : int
            Addresses.
        nbytes : int
            Bytes.
        """

    def scatter(self, launch: Scatter) -> None:
        """Run the kernel that scatters and casts; returns before that is done."""

    def record(self) -> Fence:
        """Return a mark behind everything that is in it."""

    def close(self) -> None:
        """Give it up; nothing of it is under way any more."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """What the kernel that scatters and casts is told; see ``fastassign.kernels.scatter``.

    Attributes
    ----------
    source, source_nbytes : int
        Address and bytes of the slab on the device.
    destination, destination_nbytes : int
        The lowest address that is written to, and the bytes from there to the end of the last value.
    table, rows : int
        Address on the device and rows of the table: where each run begins in the slab, where in what the destination
        spans, and its length; in elements where it is cast, in bytes where it is only copied.
    longest : int
        The longest run, in the same unit.
    kind : {"copy", "bfloat16", "float16"}
        What is done with an element.
    """

    source: int
    source_nbytes: int
    destination: int
    destination_nbytes: int
    table: int
    rows: int
    longest: int
    kind: Kind


class Driver(Protocol):
    """What is needed of a driver."""

    def serves(self, device: str) -> bool:
        """Whether a device, by TensorFlow's full name, is one of its own."""

    def kernels_missing(self) -> str:
        """Return why kernels of ours don't run on its devices; empty if they do."""

    def ordinal_of(self, device: str, address: int) -> int:
        """Return the driver's number of a device, by TensorFlow's name and the address of memory on it."""

    def stream(self, ordinal: int) -> Stream:
        """Make a stream of a device."""

    def lock(self, ordinal: int, address: int, nbytes: int) -> None:
        """Page-lock host memory, for all devices.

        Raises
        ------
        NotPageLocked
            The system does not let us.
        """

    def unlock(self, ordinal: int, address: int) -> None:
        """Undo ``lock``."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no driver to work with."""

    reason: str
    hint: str


@cache
def find_driver() -> Driver | Missing:
    """Return the driver, or why there is none; looked for once in a process."""
    try:
        from cuda.bindings import driver as bindings
    except ImportError as error:
        return Missing(f"the package cuda-bindings is not here ({error})", "pip install fastassign[cuda]")
    try:
        return CudaDriver(bindings)
    except DeviceFailed as error:
        return Missing(
            f"CUDA's driver can't be used: {error}",
            "install the driver of the card, or let the container and CUDA_VISIBLE_DEVICES show it",
        )


class CudaDriver:
    """CUDA's driver, by ``cuda.bindings.driver``.

    Parameters
    ----------
    bindings : module
        The bindings.

    Raises
    ------
    DeviceFailed
        There is no driver, or no device that it may use.
    """

    def __init__(self, bindings: Any) -> None:
        self.bindings = bindings
        self._contexts: dict[int, Any] = {}
        self._lock = threading.Lock()
        self.call("cuInit", 0)
        self.count = int(self.call("cuDeviceGetCount"))
        if not self.count:
            raise DeviceFailed("the driver sees no device")

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver and return its result.

        Raises
        ------
        DeviceFailed
            The driver reports an error, whose name and text the message has, or it does not have the function.
        """
        try:
            status, *results = getattr(self.bindings, name)(*arguments)
        except (KeyError, ValueError) as error:  # an enumeration that lacks it: the driver is newer than the bindings
            raise DeviceFailed(f"{name}: a status that the bindings don't know ({error})", hint=LOST_HINT) from error
        except RuntimeError as error:  # no library of a driver, or one that is older and lacks the function
            raise DeviceFailed(f"{name}: {error}", hint="a newer driver of the card may help") from error
        if int(status):
            raise DeviceFailed(f"{name}: {self._describe(status)}", hint=LOST_HINT)
        return results[0] if results else None

    def _describe(self, status: Any) -> str:
        _, text = self.bindings.cuGetErrorString(status)
        # An older driver may lack the text, never the bindings the name.
        return f"{status.name} ({text.decode()})" if text else str(status.name)

    def serves(self, device: str) -> bool:
        """Whether a device is a GPU of this process; see ``Driver``."""
        return device.startswith("/job:localhost/replica:0/task:0/device:GPU:")

    def kernels_missing(self) -> str:
        """Return why kernels don't run; see ``Driver``."""
        from fastassign.kernels.scatter import available

        return available() or ""

    def ordinal_of(self, device: str, address: int) -> int:  # noqa: ARG002 - the address says it all
        """Ask the driver whose memory it is; see ``Driver``.

        TensorFlow counts the devices that it sees, and can make several of one: neither number is the driver's.
        """
        if self.count == 1:
            return 0
        attribute = self.bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(self.call("cuPointerGetAttribute", attribute, address))

    def context(self, ordinal: int) -> Any:
        """Return a device's primary context, kept for the life of the process, as TensorFlow keeps it."""
        with self._lock:
            if ordinal not in self._contexts:
                self._contexts[ordinal] = self.call("cuDevicePrimaryCtxRetain", self.call("cuDeviceGet", ordinal))
            return self._contexts[ordinal]

    def stream(self, ordinal: int) -> CudaStream:
        """Make a stream; see ``Driver``."""
        return CudaStream(self, ordinal)

    def lock(self, ordinal: int, address: int, nbytes: int) -> None:
        """Page-lock host memory; see ``Driver``."""
        flags = self.bindings.CU_MEMHOSTREGISTER_PORTABLE
        with CurrentContext(self, ordinal):
            try:
                self.call("cuMemHostRegister", address, nbytes, flags)
            except DeviceFailed as error:
                raise NotPageLocked(
                    f"{nbytes} bytes of host memory could not be page-locked: {error}",
                    hint="lower DeviceOptions(slot_bytes=, threads=), raise the limit of locked memory "
                    "(ulimit -l, or the container's), or go without: DeviceOptions(page_lock=False)",
                ) from error

    def unlock(self, ordinal: int, address: int) -> None:
        """Undo ``lock``; see ``Driver``."""
        with CurrentContext(self, ordinal):
            self.call("cuMemHostUnregister", address)


class CurrentContext:
    """A context in which a thread may call the driver for one device.

    Parameters
    ----------
    driver : CudaDriver
        The driver.
    ordinal : int
        The device.
    """

    def __init__(self, driver: CudaDriver, ordinal: int) -> None:
        self._driver, self._context = driver, driver.context(ordinal)

    def __enter__(self) -> Self:
        """Make the device's context the thread's."""
        self._driver.call("cuCtxPushCurrent", self._context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the thread its own back."""
        try:
            self._driver.call("cuCtxPopCurrent")
        except DeviceFailed as failure:
            # Any call may report what an earlier copy did; what failed first says more.
            if error is None:
                raise
            annotate(error, f"and then {failure}")


class CudaStream(CurrentContext):
    """A CUDA stream; it does not wait for the legacy default stream, nor that for it. See ``Stream``.

    Parameters
    ----------
    driver : CudaDriver
        The driver.
    ordinal : int
        The device.
    """

    def __init__(self, driver: CudaDriver, ordinal: int) -> None:
        super().__init__(driver, ordinal)
        self._ordinal = ordinal
        with self:
            self._handle = driver.call("cuStreamCreate", int(driver.bindings.CUstream_flags.CU_STREAM_NON_BLOCKING))

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Copy; see ``Stream``."""
        self._driver.call("cuMemcpyHtoDAsync", destination, source, nbytes, self._handle)

    def scatter(self, launch: Scatter) -> None:
        """Run the kernel; see ``Stream``."""
        from fastassign.kernels import scatter

        try:
            scatter.launch(stream=int(self._handle), ordinal=self._ordinal, **asdict(launch))
        except Exception as error:  # numba's errors have no root of their own
            raise DeviceFailed(
                f"a kernel could not be launched: {type(error).__name__}: {error}",
                hint=f"{LOST_HINT}; with NUMBA_DISABLE_CUDA=1 in the environment loads go without kernels",
            ) from error

    def record(self, *, timed: bool = False) -> CudaFence:
        """Return a mark; ``timed`` for one whose time is kept."""
        try:
            return CudaFence(self._driver, self, self._handle, timed=timed)
        except BaseException:
            # Without a mark nobody would wait, and what is copied from would be written to.
            with suppress(DeviceFailed):
                self._driver.call("cuStreamSynchronize", self._handle)
            raise

    def close(self) -> None:
        """Destroy the stream."""
        with self:
            self._driver.call("cuStreamDestroy", self._handle)


class CudaFence:
    """A CUDA event behind what a stream holds now. See ``Fence``.

    Parameters
    ----------
    driver : CudaDriver
        The driver.
    current : CurrentContext
        The device's context, which the calling thread is in.
    stream : CUstream
        The stream.
    timed : bool
        Whether its time is kept.
    """

    def __init__(self, driver: CudaDriver, current: CurrentContext, stream: Any, *, timed: bool) -> None:
        self._driver, self._current = driver, current
        kinds = driver.bindings.CUevent_flags
        # Who waits sleeps: the core has a slot to fill.
        flags = int(kinds.CU_EVENT_BLOCKING_SYNC) | (0 if timed else int(kinds.CU_EVENT_DISABLE_TIMING))
        self._handle = driver.call("cuEventCreate", flags)
        driver.call("cuEventRecord", self._handle, stream)

    def wait(self) -> None:
        """Wait; see ``Fence``."""
        with self._current:
            self._driver.call("cuEventSynchronize", self._handle)

    def seconds_since(self, earlier: CudaFence) -> float:
        """Return the time between two timed marks, by the device's clock."""
        with self._current:
            return float(self._driver.call("cuEventElapsedTime", earlier._handle, self._handle)) / 1e3

    def __del__(self, _is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """Destroy the event: the driver does so when it is reached."""
        handle = getattr(self, "_handle", None)
        # At the end of the process the driver lets go of everything, and modules may be gone, hence the argument.
        if handle is None or _is_ending():
            return
        try:
            with self._current:
                self._driver.call("cuEventDestroy", handle)
        except DeviceFailed as error:
            # In a finaliser nobody can catch it; of a lost device, each fence would say what the load's error says.
            _log.debug("a CUDA event could not be destroyed: %s", error)
