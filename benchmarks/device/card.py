"""The device to measure: finding and describing it."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
from dataclasses import dataclass
from typing import Any

from fastassign.devices.driver import Missing
from fastassign.errors import Unsupported
from fastassign.runtime import process_runtime

# Libraries that TensorFlow opens before it looks for devices.
_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")

_SMI_FIELDS = {
    "name": "name",
    "driver_version": "driver_version",
    "compute_cap": "compute_capability",
    "memory.total": "memory_total",
    "pci.bus_id": "bus_id",
    "pcie.link.gen.current": "pcie_generation",
    "pcie.link.gen.max": "pcie_generation_most",
    "pcie.link.width.current": "pcie_width",
    "clocks.current.memory": "memory_clock",
    "power.limit": "power_limit",
}


@dataclass(frozen=True, slots=True)
class Card:
    """A device, and the driver that reaches it.

    Attributes
    ----------
    name : str
        TensorFlow's full name of it.
    driver : Any
        See ``fastassign.devices.driver.Driver``; benchmarks also use CUDA's other functions.
    ordinal : int
        The driver's number of it.
    """

    name: str
    driver: Any
    ordinal: int

    @property
    def short(self) -> str:
        """TensorFlow's short name, such as ``GPU:0``."""
        return self.name.rpartition("/device:")[2]


def find_card(device: str) -> Card:
    """Find a device.

    Parameters
    ----------
    device : str
        ``gpu`` for the first one, ``gpu:1`` for the next, or TensorFlow's full name.

    Raises
    ------
    Unsupported
        TensorFlow does not see it, or the driver can't be reached; the message says why.
    """
    import tensorflow as tf

    from fastassign.assigning.device import tensors

    name = device
    if "/device:" not in device:
        number = int(device.partition(":")[2] or 0)
        seen = tf.config.list_logical_devices("GPU")
        if number >= len(seen):
            raise Unsupported(f"TensorFlow sees no {device}: {why_unseen()}")
        name = seen[number].name
    driver = process_runtime().find_driver()
    if isinstance(driver, Missing):
        raise Unsupported(f"{name} can't be reached: {driver.reason}", hint=driver.hint)
    probe = tensors.empty((16,), "float32", name)
    full = str(probe.device)
    return Card(full, driver, driver.ordinal_of(full, tensors.address(probe, full)))


def why_unseen() -> str:
    """Return why TensorFlow sees no (other) GPU, as far as that can be found out."""
    import tensorflow as tf

    seen = tf.config.list_logical_devices("GPU")
    if seen:
        return f"it sees {', '.join(device.name for device in seen)}"
    if not tf.test.is_built_with_cuda():
        return "it was built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",")[0].strip() in {"", "-1"}:
        return f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides all of them"
    for library in _LIBRARIES:
        missing = unopened(library)
        if missing:
            return f"{library} can't be opened ({missing}), and without it TensorFlow registers no GPU"
    if tf.config.list_physical_devices("GPU"):
        return "this process made none of them visible (tf.config.set_visible_devices)"
    return "TF_CPP_MIN_LOG_LEVEL=0 makes it log the reason"


def unopened(library: str) -> str:
    """Return why a library can't be opened; empty if it can."""
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return ""


def describe(card: Card) -> dict[str, Any]:
    """Describe a device, as far as the driver, nvidia-smi and TensorFlow know it."""
    found: dict[str, Any] = {"device": card.name, "ordinal": card.ordinal, "unknown": []}
    for ask in (_by_smi, _by_driver, _by_tensorflow, _of_process):
        try:
            found.update(ask(card))
        except Exception as error:  # noqa: BLE001 - a description may have gaps
            found["unknown"].append(f"{ask.__name__.removeprefix('_')}: {type(error).__name__}: {error}")
    return found


def _by_driver(card: Card) -> dict[str, Any]:
    driver, attributes = card.driver, card.driver.bindings.CUdevice_attribute
    handle = driver.call("cuDeviceGet", card.ordinal)

    def attribute(name: str) -> int:
        return int(driver.call("cuDeviceGetAttribute", getattr(attributes, f"CU_DEVICE_ATTRIBUTE_{name}"), handle))

    version = int(driver.call("cuDriverGetVersion"))
    return {
        "name": _text(driver.call("cuDeviceGetName", 128, handle)),
        "bus_id": _text(driver.call("cuDeviceGetPCIBusId", 32, handle)),
        "memory_bytes": int(driver.call("cuDeviceTotalMem", handle)),
        "compute_capability": f"{attribute('COMPUTE_CAPABILITY_MAJOR')}.{attribute('COMPUTE_CAPABILITY_MINOR')}",
        "cuda_of_driver": f"{version // 1000}.{version % 1000 // 10}",
        "copy_engines": attribute("ASYNC_ENGINE_COUNT"),
        "multiprocessors": attribute("MULTIPROCESSOR_COUNT"),
        # If it is 1, the card reads pageable memory by itself, and "pageable" rates mean something else.
        "pageable_memory_access": attribute("PAGEABLE_MEMORY_ACCESS"),
    }


def _by_smi(card: Card) -> dict[str, Any]:
    which = _text(card.driver.call("cuDeviceGetPCIBusId", 32, card.driver.call("cuDeviceGet", card.ordinal)))
    command = ["nvidia-smi", f"--id={which}", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode or len(values) != len(_SMI_FIELDS):
        raise OSError(f"nvidia-smi ended with {done.returncode}: {(done.stdout + done.stderr).strip()[:300]}")
    return dict(zip(_SMI_FIELDS.values(), values, strict=True))


def _by_tensorflow(card: Card) -> dict[str, Any]:
    import tensorflow as tf

    kind, _, number = card.short.partition(":")
    physical = tf.config.list_physical_devices(kind)
    details = tf.config.experimental.get_device_details(physical[min(int(number), len(physical) - 1)])
    return {"tensorflow": {key: str(value) for key, value in details.items()}}


def _of_process(_: Card) -> dict[str, Any]:
    names = ("CUDA_VISIBLE_DEVICES", "TF_FORCE_GPU_ALLOW_GROWTH", "TF_GPU_ALLOCATOR", "TF_ENABLE_ONEDNN_OPTS")
    return {
        "environment": {name: os.environ[name] for name in names if name in os.environ},
        "locked_memory_limit": locked_memory_limit(),
    }


def locked_memory_limit() -> str:
    """Return the most memory that this process may lock, as text."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,} bytes"


def sync() -> None:
    """Wait until TensorFlow's devices have finished all work."""
    import tensorflow as tf

    tf.test.experimental.sync_devices()


def _text(value: Any) -> str:
    return value.decode(errors="replace").split("\0")[0].strip() if isinstance(value, bytes) else str(value)
