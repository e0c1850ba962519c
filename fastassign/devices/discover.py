"""Discovery of the driver, and of the devices that can be reached without TensorFlow's own copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from fastassign.devices.cuda import CudaDriver
from fastassign.devices.driver import Driver, Missing
from fastassign.errors import DeviceFailed
from fastassign.planning.lanes import NO_DEVICES, Device, Devices

_COST = (
    "TensorFlow copies the values itself: one transfer for each variable, waited for, "
    "from memory that is not page-locked"
)


@cache
def find_driver() -> Driver | Missing:
    """Return the driver, or the reason why there is none. The search runs once in a process."""
    try:
        from cuda.bindings import driver as bindings
    except ImportError as error:
        return Missing(f"the package cuda-bindings is not installed ({error})", "pip install fastassign[cuda]")
    try:
        return CudaDriver(bindings)
    except DeviceFailed as error:
        return Missing(
            f"CUDA's driver can't be used: {error}",
            "install the driver of the card, or make the card visible (the container's devices, CUDA_VISIBLE_DEVICES)",
        )


def find_devices(names: Iterable[str], find_driver: Callable[[], Driver | Missing], *, kernels: bool) -> Devices:
    """Find the devices that fastassign can copy to by itself.

    Parameters
    ----------
    names : iterable of str
        TensorFlow's full names of the devices that the variables are on; empty for variables without one.
    find_driver : callable
        Returns the driver, or ``Missing``; not called if all variables are on the host.
    kernels : bool
        Whether the load could use kernels. Looking for them imports numba, which takes 0.4 s.

    Returns
    -------
    Devices
        The devices that can be reached, and for each GPU that can't the reason.
    """
    # Most loads go to the host alone, and need not look for a driver.
    wanted = {name for name in names if name and not name.endswith("/device:CPU:0")}
    if not wanted:
        return NO_DEVICES
    driver = find_driver()
    if isinstance(driver, Missing):
        text = f"{driver.reason}: {_COST} ({driver.hint})"
        return Devices(fallbacks={name: f"{name}: {text}" for name in wanted if "/device:GPU:" in name})
    missing = driver.kernels_missing() if kernels else "nothing is cast there, and kernels were not looked for"
    return Devices(reached={name: Device(name, missing) for name in wanted if driver.serves(name)})
