"""CUDA's driver: page-locking, streams, copies, kernels and fences.

This module calls NVIDIA's own bindings of the driver (the package ``cuda-bindings``), not the CUDA runtime: the
driver's API needs nothing but the driver, whichever CUDA TensorFlow was built with. TensorFlow and the CUDA runtime
both use a device's *primary context* (source: ``CudaContext::Create`` in OpenXLA), and so does this module: TensorFlow
ends the process if it finds a thread in another context.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastassign.devices.driver import LOST_HINT
from fastassign.errors import DeviceFailed, NotPageLocked, annotate
from fastassign.kernels.scatter import Scatter

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("fastassign")


class CudaDriver:
    """CUDA's driver, called through ``cuda.bindings.driver``. See ``Driver``.

    Parameters
    ----------
    bindings : module
        The module ``cuda.bindings.driver``.

    Raises
    ------
    DeviceFailed
        There is no driver, or it sees no device.
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
            The driver lacks the function, or reports an error; the message has the error's name and text.
        """
        try:
            status, *results = getattr(self.bindings, name)(*arguments)
        except (KeyError, ValueError) as error:  # a status newer than the bindings
            raise DeviceFailed(f"{name}: a status that the bindings don't know ({error})", hint=LOST_HINT) from error
        except RuntimeError as error:  # there is no driver, or an older one without the function
            raise DeviceFailed(f"{name}: {error}", hint="a newer driver of the card may help") from error
        if int(status):
            raise DeviceFailed(f"{name}: {self._describe(status)}", hint=LOST_HINT)
        return results[0] if results else None

    def _describe(self, status: Any) -> str:
        _, text = self.bindings.cuGetErrorString(status)
        # The bindings know every name; an older driver may lack the text.
        return f"{status.name} ({text.decode()})" if text else str(status.name)

    def serves(self, device: str) -> bool:
        """Whether a device is a GPU of this process."""
        return device.startswith("/job:localhost/replica:0/task:0/device:GPU:")

    def kernels_missing(self) -> str:
        """Return why kernels can't be launched; empty if they can."""
        from fastassign.kernels.scatter import available

        return available() or ""

    def ordinal_of(self, device: str, address: int) -> int:  # noqa: ARG002 - the address is enough
        """Ask the driver which device the memory is on.

        TensorFlow's own numbers differ: it counts only the devices that it sees, and can make several of one.
        """
        if self.count == 1:
            return 0
        attribute = self.bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(self.call("cuPointerGetAttribute", attribute, address))

    def context(self, ordinal: int) -> Any:
        """Return a device's primary context; like TensorFlow, keep it for the life of the process."""
        with self._lock:
            if ordinal not in self._contexts:
                self._contexts[ordinal] = self.call("cuDevicePrimaryCtxRetain", self.call("cuDeviceGet", ordinal))
            return self._contexts[ordinal]

    def stream(self, ordinal: int) -> CudaStream:
        """Make a stream."""
        return CudaStream(self, ordinal)

    def lock(self, ordinal: int, address: int, nbytes: int) -> None:
        """Page-lock host memory, for all devices."""
        flags = self.bindings.CU_MEMHOSTREGISTER_PORTABLE
        with CurrentContext(self, ordinal):
            try:
                self.call("cuMemHostRegister", address, nbytes, flags)
            except DeviceFailed as error:
                raise NotPageLocked(
                    f"{nbytes} bytes of host memory could not be page-locked: {error}",
                    hint="lower DeviceOptions(slot_bytes=, threads=), raise the limit of locked memory "
                    "(ulimit -l, or the container's), or do without: DeviceOptions(page_lock=False)",
                ) from error

    def unlock(self, ordinal: int, address: int) -> None:
        """Undo ``lock``."""
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
        """Give the thread its previous context back."""
        try:
            self._driver.call("cuCtxPopCurrent")
        except DeviceFailed as failure:
            # Any call may report the failure of an earlier copy. The first error says more.
            if error is None:
                raise
            annotate(error, f"and then {failure}")


class CudaStream(CurrentContext):
    """A CUDA stream. It and the legacy default stream don't wait for each other. See ``Stream``.

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
        """Queue a copy."""
        self._driver.call("cuMemcpyHtoDAsync", destination, source, nbytes, self._handle)

    def scatter(self, work: Scatter) -> None:
        """Queue the kernel that scatters and casts."""
        from fastassign.kernels import scatter

        try:
            scatter.launch(work, stream=int(self._handle), ordinal=self._ordinal)
        except Exception as error:  # numba's errors have no root of their own
            raise DeviceFailed(
                f"a kernel could not be launched: {type(error).__name__}: {error}",
                hint=f"{LOST_HINT}; with NUMBA_DISABLE_CUDA=1 in the environment loads do without kernels",
            ) from error

    def record(self, *, timed: bool = False) -> CudaFence:
        """Return a mark; with ``timed``, one that keeps its time."""
        try:
            return CudaFence(self._driver, self, self._handle, timed=timed)
        except BaseException:
            # Without a mark nothing would wait for the copies, and their source could be overwritten.
            with suppress(DeviceFailed):
                self._driver.call("cuStreamSynchronize", self._handle)
            raise

    def close(self) -> None:
        """Destroy the stream."""
        with self:
            self._driver.call("cuStreamDestroy", self._handle)


class CudaFence:
    """A CUDA event behind all work that a stream holds now. See ``Fence``.

    Parameters
    ----------
    driver : CudaDriver
        The driver.
    current : CurrentContext
        The device's context; the calling thread is in it.
    stream : CUstream
        The stream.
    timed : bool
        Whether the event keeps its time.
    """

    def __init__(self, driver: CudaDriver, current: CurrentContext, stream: Any, *, timed: bool) -> None:
        self._driver, self._current = driver, current
        kinds = driver.bindings.CUevent_flags
        # A waiting thread sleeps, so that its core can fill a slot.
        flags = int(kinds.CU_EVENT_BLOCKING_SYNC) | (0 if timed else int(kinds.CU_EVENT_DISABLE_TIMING))
        self._handle = driver.call("cuEventCreate", flags)
        driver.call("cuEventRecord", self._handle, stream)

    def wait(self) -> None:
        """Wait until the device has done all work before the mark."""
        with self._current:
            self._driver.call("cuEventSynchronize", self._handle)

    def seconds_since(self, earlier: CudaFence) -> float:
        """Return the time between two timed marks, by the device's clock."""
        with self._current:
            return float(self._driver.call("cuEventElapsedTime", earlier._handle, self._handle)) / 1e3

    def __del__(self, _is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """Destroy the event; the driver puts it off until the event is reached."""
        handle = getattr(self, "_handle", None)
        # At the end of the process the driver frees everything. Modules may be gone by then, hence the argument.
        if handle is None or _is_ending():
            return
        try:
            with self._current:
                self._driver.call("cuEventDestroy", handle)
        except DeviceFailed as error:
            # Nobody can catch an error of a finaliser; and on a lost device each fence would repeat the load's error.
            _log.debug("a CUDA event could not be destroyed: %s", error)
