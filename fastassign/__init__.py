"""fastassign loads Keras weight files (HDF5) into TensorFlow variables at the speed of the hardware.

>>> import fastassign as fa
>>> report = fa.load_weights(model, "model.weights.h5")  # doctest: +SKIP
"""

from __future__ import annotations

from fastassign.architecture.load import load_model
from fastassign.catalog.catalog import Catalog
from fastassign.catalog.policy import Limits
from fastassign.errors import (
    Budget,
    Cancelled,
    Changed,
    Denied,
    DeviceFailed,
    DeviceMemory,
    FastAssignError,
    Malformed,
    Mismatch,
    MissingGroup,
    NoSession,
    NotAFile,
    NoTensorFlow,
    NotFound,
    NotPageLocked,
    ReadFailed,
    Refused,
    Truncated,
    Unreadable,
    Unsupported,
)
from fastassign.loader.background import LoadFuture
from fastassign.loader.loader import Loader
from fastassign.options import DeviceOptions, LoadOptions
from fastassign.patching.switch import accelerate, install, uninstall
from fastassign.plan import Plan
from fastassign.progress import ProgressEvent
from fastassign.report import Report
from fastassign.targets.deferred_init import deferred_init
from fastassign.verbs import assign, inspect, load_weights, plan, release_buffers

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Cancelled",
    "Catalog",
    "Changed",
    "Denied",
    "DeviceFailed",
    "DeviceMemory",
    "DeviceOptions",
    "FastAssignError",
    "Limits",
    "LoadFuture",
    "LoadOptions",
    "Loader",
    "Malformed",
    "Mismatch",
    "MissingGroup",
    "NoSession",
    "NoTensorFlow",
    "NotAFile",
    "NotFound",
    "NotPageLocked",
    "Plan",
    "ProgressEvent",
    "ReadFailed",
    "Refused",
    "Report",
    "Truncated",
    "Unreadable",
    "Unsupported",
    "__version__",
    "accelerate",
    "assign",
    "deferred_init",
    "inspect",
    "install",
    "load_model",
    "load_weights",
    "plan",
    "release_buffers",
    "uninstall",
]
