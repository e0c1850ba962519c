"""The memory that a load takes beyond the model: host memory in a process of its own, device memory in this process.

``python -m fastassign.benchmarks.limits.peak module:function file.weights.h5 fastassign`` prints one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_extra_bytes(model: str, path: Path, loader: str) -> dict[str, int]:
    """Load in a child process and return its figures.

    Parameters
    ----------
    model : str
        ``module:function`` of a function without arguments that builds the model.
    path : pathlib.Path
        The file.
    loader : {"stock", "fastassign"}
        The loader to measure.

    Returns
    -------
    dict of str to int
        ``extra``: bytes by which peak RSS rose; ``planned``: bytes that the plan states; ``largest``: bytes of the
        largest variable.
    """
    command = [sys.executable, "-m", "fastassign.benchmarks.limits.peak", model, str(path), loader]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, int] = json.loads(out.splitlines()[-1])
    return figures


def _measure(name: str, path: str, loader: str) -> dict[str, int]:
    import fastassign

    module, _, function = name.partition(":")
    model = getattr(importlib.import_module(module), function)()
    planned = 0
    if loader == "fastassign":
        planned = fastassign.plan(model, path).staging_bytes
    before = _reset_host()
    if loader == "fastassign":
        fastassign.load_weights(model, path)
    else:
        model.load_weights(path)
    largest = max(int(w._value.dtype.size) * int(w.shape.num_elements()) for w in model.weights)
    return {"extra": _status("VmHWM") - before, "planned": planned, "largest": largest}


def with_peaks(device: str, action: Callable[[], Any]) -> dict[str, Any]:
    """Do something, and return how far its peak memory was above the memory before.

    Parameters
    ----------
    device : str
        TensorFlow's short name, such as ``GPU:0``.
    action : callable
        The action to measure.

    Returns
    -------
    dict
        ``device_extra_bytes``, counted by TensorFlow's allocator, and ``host_extra_bytes``, by RSS. A figure that can't
        be measured is missing, and ``unmeasured`` says why.
    """
    unmeasured: list[str] = []
    host = _guarded(_reset_host, unmeasured)
    allocated = _guarded(lambda: _reset_device(device), unmeasured)
    action()
    found: dict[str, Any] = {}
    if host is not None:
        found["host_extra_bytes"] = _status("VmHWM") - host
    if allocated is not None:
        found["device_extra_bytes"] = device_info(device)["peak"] - allocated
    return {**found, "unmeasured": unmeasured} if unmeasured else found


def device_info(device: str) -> dict[str, int]:
    """Return the bytes that TensorFlow counts for a device: now (``current``), and at the highest (``peak``).

    Raises
    ------
    ValueError
        TensorFlow does not know the device, or its allocator keeps no statistics.
    """
    import tensorflow as tf

    info: dict[str, int] = tf.config.experimental.get_memory_info(device)
    return info


def _guarded(measure: Callable[[], int], unmeasured: list[str]) -> int | None:
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 - a container may forbid it, a device may keep no count
        unmeasured.append(f"{type(error).__name__}: {error}")
        return None


def _reset_device(device: str) -> int:
    import tensorflow as tf

    device_info(device)  # says that nothing is counted; the next call would only say that it can't begin anew
    tf.config.experimental.reset_memory_stats(device)
    return device_info(device)["current"]


def _reset_host() -> int:
    # 5 resets the high-water mark (man 5 proc).
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:])))
