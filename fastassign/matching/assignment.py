"""The result of matching: which record goes into which variable, and what is left on both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastassign.catalog.memory import ArrayRecord
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.conversions.recipes import Recipe
from fastassign.targets.target import Layout, Target

# How stored values become values of the variable. "same": the bytes are the values. "reinterpret": opaque bytes
# that the variable's dtype explains (bfloat16, float8). "cast": numpy's astype, through the library's assign.
Fit = Literal["same", "reinterpret", "cast"]

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
    """A variable whose value is made of arrays of the file: from an older layout, turned round, or reshaped.

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
        """Host memory that it takes at its peak: what is read, the result, and temporaries."""
        # The library's own assign makes two copies on its way.
        copies = 1 if self.target.resource is not None else 3
        return self.recipe.nbytes + self.recipe.spare_bytes + copies * self.target.nbytes

    def __str__(self) -> str:
        """Say what is done."""
        return f"{self.target.name}: {', '.join(self.recipe.steps)}"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell the user, by the channel that the library itself uses for it."""

    text: str
    channel: Literal["warnings", "logging", "absl"] = "warnings"


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """An object of the model that could not be loaded, and stock's text of the reason."""

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


def failure_notices(library: Literal["keras", "tf_keras", "tensorflow"], failures: Sequence[Failure]) -> list[Notice]:
    """Return the warnings that stock gives under ``skip_mismatch``: Keras 3 one for all, tf_keras one for each."""
    if library == "keras":
        return [Notice(failure_text(failures))] if failures else []
    return [
        Notice(f"Could not load weights in object {each.obj}. Skipping object. Exception encountered: {each.error}")
        for each in failures
    ]


@dataclass(slots=True)
class Matching:
    """Everything that a load will do, before it is planned.

    Attributes
    ----------
    library : {"keras", "tf_keras", "tensorflow"}
        The model's library; ``"tensorflow"`` for variables without a model.
    layout : {"legacy", "keras3", "named"}
        How the file was read; ``"named"``: tensor by tensor, by name.
    assignments : dict of int to Assignment
        By ``id`` of the target's variable: a variable that stock assigns twice keeps the later value.
    hooks : list of Hook
        What only the library's own code can do.
    conversions : dict of int to Conversion
        As ``assignments``; no variable is in both.
    finalizers : list of callable
        To be called once when all variables are in.
    notices : list of Notice
        Warnings that stock gives for this load.
    failures : list of Failure
        Objects that ``skip_mismatch`` leaves as they are; stock's warning about them comes with those that fail
        by their own methods.
    skipped : list of str
        What ``skip_mismatch``, ``include`` or ``exclude`` left out, and why.
    left_out : set of int
        ``id`` of the variables that ``include`` and ``exclude`` leave as they are.
    repaired : list of str
        Where the names in the file overruled the position.
    missing : tuple of Target
        Variables of the model that get no value.
    unexpected : tuple of TensorRecord
        Weights of the file that no variable takes.
    """

    library: Literal["keras", "tf_keras", "tensorflow"]
    layout: Layout
    assignments: dict[int, Assignment] = field(default_factory=dict)
    hooks: list[Hook] = field(default_factory=list)
    conversions: dict[int, Conversion] = field(default_factory=dict)
    finalizers: list[Callable[[], None]] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left_out: set[int] = field(default_factory=set)
    repaired: list[str] = field(default_factory=list)
    missing: tuple[Target, ...] = ()
    unexpected: tuple[TensorRecord, ...] = ()

    @property
    def targets(self) -> list[Target]:
        """Everything that gets a value, except by objects that load themselves."""
        assigned: list[Assignment | Conversion] = [*self.assignments.values(), *self.conversions.values()]
        return [each.target for each in assigned]

    def assign(self, value: TensorRecord | Recipe, target: Target) -> None:
        """Add an assignment whose shapes are known to agree.

        Raises
        ------
        Mismatch
            The stored bytes have no meaning as the variable's dtype; the text is stock's.
        """
        key = id(target.variable)
        # The later of two values stays, whichever way they come.
        self.conversions.pop(key, None)
        if isinstance(value, TensorRecord) or not value.steps:
            record = value if isinstance(value, TensorRecord) else value.records[0]
            self.assignments[key] = Assignment(record, target, fit(record, target))
            return
        if not value.records:
            raise Mismatch(
                "the weights are of a layout that only the library's own loader converts",
                variable=target.name,
                hint="load the file with model.load_weights",
            )
        self.assignments.pop(key, None)
        self.conversions[key] = Conversion(value, target, tuple(fit(record, target) for record in value.records))

    def leave_out(self, name: str, variable: Any) -> None:
        """Note a variable that the options leave as it is; a second time says nothing new."""
        if id(variable) not in self.left_out:
            self.left_out.add(id(variable))
            self.skipped.append(f"{name}: left out by include or exclude")

    def assign_array(self, record: ArrayRecord, target: Target) -> None:
        """Add an array of the variable's shape; it is cast while it is copied."""
        self.assignments[id(target.variable)] = Assignment(record, target, "same")


def fit(record: TensorRecord, target: Target) -> Fit:
    """Tell how a record's values become the variable's."""
    if _TENSORFLOW_NAMES.get(record.dtype) == target.dtype:
        return "same"
    if record.dtype.startswith("|V"):
        if _OPAQUE_FORMS.get(target.dtype) == record.dtype:
            return "reinterpret"
        raise Mismatch(
            # numpy's texts: it tries its own floats element by element, and knows no way to those of ml_dtypes.
            "setting an array element with a sequence."
            if target.dtype in _NUMPY_FLOATS
            else "No cast function available.",
            tensor=record.key,
            variable=target.name,
            hint=f"the dataset holds opaque bytes ({record.dtype}), the variable is {target.dtype}",
        )
    return "cast"
