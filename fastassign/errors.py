"""The errors that fastassign raises: one root, each also the builtin that a caller would expect.

Where stock Keras raises for the same input, ``str(error)`` is Keras' own text and the class derives from
Keras' own exception type, so code written against Keras keeps working. What Keras does not say (which file,
which tensor, which variable, what to do next) is in the attributes, and in the notes that Python 3.11 and
newer print below the message.

Every class here is also exported by ``fastassign``, and ``docs/errors.md`` lists them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Budget",
    "Cancelled",
    "Changed",
    "Denied",
    "DeviceFailed",
    "DeviceMemory",
    "FastAssignError",
    "Malformed",
    "Mismatch",
    "MissingGroup",
    "NoSession",
    "NoTensorFlow",
    "NotAFile",
    "NotFound",
    "NotPageLocked",
    "ReadFailed",
    "Refused",
    "Truncated",
    "Unreadable",
    "Unsupported",
]


class FastAssignError(Exception):
    """The root of every error that fastassign raises on purpose.

    Parameters
    ----------
    message : str
        What went wrong; equal to stock Keras' text where stock raises too.
    file : str or os.PathLike, optional
        The file that was being loaded.
    tensor : str, optional
        The dataset inside the file, as its HDF5 path.
    variable : str, optional
        The variable in the model.
    hint : str, optional
        What the caller can do next.
    summary : str, optional
        The message in our own words, where ``message`` repeats those of h5py or Keras; the command line prints it.
        Otherwise the message itself.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
        variable: str | None = None,
        hint: str | None = None,
        summary: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.summary = summary or message
        self.file = None if file is None else os.fspath(file)
        self.tensor = tensor
        self.variable = variable
        self.hint = hint
        for label in ("file", "tensor", "variable", "hint"):
            value = getattr(self, label)
            if value is not None:
                annotate(self, f"{label}: {value}")

    def at(self, file: str | os.PathLike[str]) -> Self:
        """Add the file's name, where the code that raised the error did not know it, and return the error."""
        if self.file is None:
            self.file = os.fspath(file)
            annotate(self, f"file: {self.file}")
        return self

    def advise(self, hint: str) -> None:
        """Replace the hint."""
        old, self.hint = f"hint: {self.hint}", hint
        notes = [note for note in getattr(self, "__notes__", ()) if note != old]
        self.__notes__ = notes
        annotate(self, f"hint: {hint}")

    def __str__(self) -> str:
        """Return the message alone, so that texts can be compared with stock's."""
        return self.message


def annotate(error: BaseException, note: str) -> None:
    """Attach a note that tracebacks print below the message (shown by Python 3.11 and newer)."""
    notes: list[Any] = [*getattr(error, "__notes__", ()), note]
    # The attribute of PEP 678. Python 3.10 keeps it, and prints nothing.
    error.__notes__ = notes  # type: ignore[attr-defined]


_CHANGED, _UNCHANGED = "have their new values already", "no variable was changed"


def name_state(error: BaseException, assigned: tuple[str, ...], total: int) -> None:
    """Note on an error that ended a load which variables have their new values already.

    Parameters
    ----------
    error : BaseException
        The error; it gets an attribute ``assigned`` with the names, and a note.
    assigned : tuple of str
        The variables that were assigned, in order.
    total : int
        How many variables the load would have assigned.
    """
    error.assigned = assigned  # type: ignore[attr-defined]
    shown = ", ".join(assigned[:8]) + (", ..." if len(assigned) > 8 else "")
    note = f"{len(assigned)} of {total} variables {_CHANGED}: {shown}"
    # A caller that executes several loads knows more than the load that failed, so the latest note replaces the
    # earlier.
    notes = [old for old in getattr(error, "__notes__", ()) if old != _UNCHANGED and _CHANGED not in old]
    error.__notes__ = notes  # type: ignore[attr-defined]
    annotate(error, note if assigned else _UNCHANGED)


class Unreadable(FastAssignError, OSError):
    """The file can't be opened."""


class NotFound(Unreadable, FileNotFoundError):
    """The file does not exist."""


class Denied(Unreadable, PermissionError):
    """The process is not allowed to read the file."""


class NotAFile(Unreadable, IsADirectoryError):
    """The path is a directory."""


class Malformed(FastAssignError, OSError):
    """The file is not HDF5, or its structure contradicts itself."""


class ReadFailed(FastAssignError, OSError):
    """The storage reported an error while the file was being read."""


class Truncated(FastAssignError, OSError):
    """The file ends before the data that it declares."""


class Changed(FastAssignError, OSError):
    """The file was modified while it was being read."""


class Refused(FastAssignError, ValueError):
    """The file asks for something that the policy for untrusted files does not allow.

    Parameters
    ----------
    rule : str
        The name of the rule, as ``docs/policy.md`` lists it.
    option : str, optional
        The option that would allow it; ``None`` if no option does.
    """

    def __init__(self, message: str, *, rule: str, option: str | None = None, **context: Any) -> None:
        self.rule = rule
        self.option = option
        if option is not None:
            context.setdefault("hint", f"if you trust this file, allow it with {option}")
        super().__init__(message, **context)
        annotate(self, f"rule: {rule}")


class Mismatch(FastAssignError, ValueError):
    """The file and the model do not fit together; nothing was changed.

    Attributes
    ----------
    diff : fastassign.matching.mismatch.diff.Diff or None
        The file and the model side by side, where they can be compared: ``print(error.diff)``. Tracebacks show it
        below the message.
    """

    diff: Any = None

    def explain(self, diff: Any) -> None:
        """Attach the diff."""
        self.diff = diff
        annotate(self, str(diff))


class MissingGroup(Mismatch, KeyError):
    """The file lacks a group that its layout requires."""


class NoSession(FastAssignError, ValueError):
    """The variables belong to a TensorFlow 1 graph, and there is no session to assign them in."""


class Budget(FastAssignError, MemoryError):
    """The load needs more memory than the options allow."""


class NotPageLocked(FastAssignError, MemoryError):
    """The system refused to page-lock the host memory that copies to a GPU go through."""


class DeviceMemory(FastAssignError, MemoryError):
    """A GPU does not have enough free memory for the load."""


class DeviceFailed(FastAssignError, RuntimeError):
    """A GPU or its driver reported an error."""


class Unsupported(FastAssignError, NotImplementedError):
    """The request is valid, but fastassign does not support it (yet)."""


class NoTensorFlow(FastAssignError, ImportError):
    """TensorFlow, or the Keras that a model needs, is not installed."""


class Cancelled(FastAssignError, RuntimeError):
    """The load was stopped on request before it was complete."""
