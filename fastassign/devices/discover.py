"""Which devices can be reached without TensorFlow's own copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastassign.devices import cuda
from fastassign.planning.lanes import NO_DEVICES, Device, Devices

_COST = (
    "values go through TensorFlow's own copy: one transfer for each variable, waited for, "
    "from memory that is not page-locked"
)


def find_devices(
    names: Iterable[str], find_driver: Callable[[], cuda.Driver | cuda.Missing], *, kernels: bool
) -> Devices:
    """Find out which devices we can copy to.

    Parameters
    ----------
    names : iterable of str
        TensorFlow's full names of the devices that variables stand on; empty for variables without one.
    find_driver : callable
        Returns the driver, or what is missing; not called where no variable stands on a device.
    kernels : bool
        Whether kernels of ours are of use: looking for them imports numba, which takes 0.4 s.

    Returns
    -------
    Devices
        What is reached, and for GPUs that are not why.
    """
    # Most loads go to the host alone, and need not look for a driver.
    wanted = {name for name in names if name and not name.endswith("/device:CPU:0")}
    if not wanted:
        return NO_DEVICES
    driver = find_driver()
    if isinstance(driver, cuda.Missing):
        text = f"{driver.reason}: {_COST} ({driver.hint})"
        return Devices(fallbacks={name: f"{name}: {text}" for name in wanted if "/device:GPU:" in name})
    missing = driver.kernels_missing() if kernels else "nothing is cast there, and kernels were not looked for"
    return Devices(reached={name: Device(name, missing) for name in wanted if driver.serves(name)})
