"""The result of matching: which record goes into which variable, and what remains on both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from fastassign.catalog.memory import ArrayRecord
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.conversions.recipes import Recipe
from fastassign.targets.target import Layout, Target

# How stored values become values of the variable. "same": the bytes are the values. "reinterpret": the bytes are
# opaque in the file, and the variable's dtype explains them (bfloat16, float8). "cast": numpy's astype, through the
# library's assign.
Fit: TypeAlias = Literal["same", "reinterpret", "cast"]

# The library that a model belongs to; "tensorflow" for variables without a model.
Library: TypeAlias = Literal["keras", "tf_keras", "tensorflow"]

# TensorFlow's dtype names whose stored form is opaque, and its item size.
_OPAQUE_FORMS = {"bfloat16": "|V2", "float8_e4m3fn": "|V1", "float8_e5m2": "|V1"}

_NUMPY_FLOATS = frozenset({"float16", "float32", "float64"})

_TENSORFLOW_NAMES = {
    "|b1": "bool", "|i1": "int8", "|u1": "uint8", "<i2": "int16", "<u2": "uint16", "<i4": "int32", "<u4": "uint32",
    "<i8": "int64", "<u8": "uint64", "<f2": "float16", "<f4": "float32", "<f8": "float64", "<c8": "complex64",
    "<c16": "complex128", "bfloat16": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """One record that goes into one variable."""

    record: TensorRecord | ArrayRecord
    target: Target
    fit: Fit


@dataclass(frozen=True, slots=True, eq=False)
class Hook:
    """An object whose own ``load_own_variables`` has to run, on a store of these records by name."""

    obj: Any
    path: str
    records: dict[str, TensorRecord]


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """A variable whose value is computed from arrays of the file: from an older layout, flipped, or reshaped.

    Attributes
    ----------
    recipe : Recipe
        The arithmetic.
    target : Target
        The variable.
    fits : tuple of Fit
        How the values of each record are read.
    """

    recipe: Recipe
    target: Target
    fits: tuple[Fit, ...]

    @property
    def staged_bytes(self) -> int:
        """Host memory that it takes at its peak: the arrays of the file, the result, and temporaries."""
        # The library's own assign makes two copies.
        copies = 1 if self.target.resource is not None else 3
        return self.recipe.nbytes + self.recipe.spare_bytes + copies * self.target.nbytes

    def __str__(self) -> str:
        """Name the variable and the steps of the recipe."""
        return f"{self.target.name}: {', '.join(self.recipe.steps)}"


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning to the user, through the channel that the library itself uses for it."""

    text: str
    channel: Literal["warnings", "logging", "absl"] = "warnings"


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """An object of the model that could not be loaded, and the reason in stock's words."""

    obj: Any
    error: str


def failure_text(failures: Sequence[Failure]) -> str:
    """Return Keras 3's text for objects that could not be loaded."""
    return (
        f"A total of {len(failures)} objects could not "
        "be loaded. Example error message for "
        f"object {failures[0].obj}:\n\n"
        f"{failures[0].error}\n\n"
        "List of objects that could not be loaded:\n"
        f"{[failure.obj for failure in failures]}"
    )


def failure_notices(library: Library, failures: Sequence[Failure]) -> list[Notice]:
    """Return the warnings that stock gives under ``skip_mismatch``: one for all in Keras 3, one each in tf_keras."""
    if library == "keras":
        return [Notice(failure_text(failures))] if failures else []
    return [
        Notice(f"Could not load weights in object {each.obj}. Skipping object. Exception encountered: {each.error}")
        for each in failures
    ]


def _no_mapping() -> Mapping[int, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """Everything that a load will do, before it is planned; a ``MatchingBuilder`` makes it.

    Attributes
    ----------
    library : {"keras", "tf_keras", "tensorflow"}
        The model's library; ``"tensorflow"`` for variables without a model.
    layout : {"legacy", "keras3", "named"}
        How the file was read; ``"named"``: tensor by tensor, by name.
    assignments : mapping of int to Assignment
        By ``id`` of the target's variable: a variable that stock assigns twice keeps the later value.
    hooks : tuple of Hook
        Objects that only the library's own code can load.
    conversions : mapping of int to Conversion
        As ``assignments``; no variable is in both.
    finalizers : tuple of callable
        To be called once when all variables have their values.
    notices : tuple of Notice
        Warnings that stock gives for this load.
    failures : tuple of Failure
        Objects that ``skip_mismatch`` leaves as they are. Stock's warning about them also names the objects whose
        own methods fail during the load.
    skipped : tuple of str
        The variables and layers that ``skip_mismatch``, ``include`` or ``exclude`` left out, and why.
    left_out : frozenset of int
        ``id`` of the variables that ``include`` and ``exclude`` leave as they are.
    repaired : tuple of str
        Where the names in the file overruled the position.
    missing : tuple of Target
        Variables of the model that get no value.
    unexpected : tuple of TensorRecord
        Weights of the file that no variable takes.
    """

    library: Library
    layout: Layout
    assignments: Mapping[int, Assignment] = field(default_factory=_no_mapping)
    hooks: tuple[Hook, ...] = ()
    conversions: Mapping[int, Conversion] = field(default_factory=_no_mapping)
    finalizers: tuple[Callable[[], None], ...] = ()
    notices: tuple[Notice, ...] = ()
    failures: tuple[Failure, ...] = ()
    skipped: tuple[str, ...] = ()
    left_out: frozenset[int] = frozenset()
    repaired: tuple[str, ...] = ()
    missing: tuple[Target, ...] = ()
    unexpected: tuple[TensorRecord, ...] = ()

    @property
    def targets(self) -> list[Target]:
        """Every variable that gets a value, except by objects that load themselves."""
        assigned: list[Assignment | Conversion] = [*self.assignments.values(), *self.conversions.values()]
        return [each.target for each in assigned]

    @property
    def hook_records(self) -> list[TensorRecord]:
        """Records of the objects that load themselves."""
        return [record for hook in self.hooks for record in hook.records.values()]


def fit(record: TensorRecord, target: Target) -> Fit:
    """Tell how a record's values become the variable's."""
    if _TENSORFLOW_NAMES.get(record.dtype) == target.dtype:
        return "same"
    if record.dtype.startswith("|V"):
        if _OPAQUE_FORMS.get(target.dtype) == record.dtype:
            return "reinterpret"
        raise Mismatch(
            # numpy's texts: it tries its own floats element by element, and has no cast to the dtypes of ml_dtypes.
            "setting an array element with a sequence."
            if target.dtype in _NUMPY_FLOATS
            else "No cast function available.",
            tensor=record.key,
            variable=target.name,
            hint=f"the dataset holds opaque bytes ({record.dtype}), the variable is {target.dtype}",
        )
    return "cast"
