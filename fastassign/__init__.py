"""fastassign loads Keras weight files (HDF5) into TensorFlow variables at the speed of the hardware.

>>> import fastassign as fa
>>> report = fa.load_weights(model, "model.weights.h5")  # doctest: +SKIP
"""

from __future__ import annotations

from fastassign.catalog.open import Catalog
from fastassign.catalog.policy import Limits
from fastassign.errors import (
    Budget,
    Cancelled,
    Changed,
    FastAssignError,
    Malformed,
    Mismatch,
    Refused,
    Truncated,
)
from fastassign.options import LoadOptions
from fastassign.planning.plan import Plan
from fastassign.progress import ProgressEvent
from fastassign.report import Report
from fastassign.verbs import inspect, load_weights, plan

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Cancelled",
    "Catalog",
    "Changed",
    "FastAssignError",
    "Limits",
    "LoadOptions",
    "Malformed",
    "Mismatch",
    "Plan",
    "ProgressEvent",
    "Refused",
    "Report",
    "Truncated",
    "__version__",
    "inspect",
    "load_weights",
    "plan",
]
