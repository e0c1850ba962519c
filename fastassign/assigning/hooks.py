"""Hooks: layers that load themselves, by their own code.

Their code gets real arrays, read through the same checks as everything else. Hooks run before any other variable is
assigned, because they alone can fail for another reason than the disk or a device. If one fails, the variables of the
hooks before it get their old values back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastassign.catalog.records import TensorRecord
from fastassign.errors import FastAssignError, Mismatch
from fastassign.matching.assignment import Failure, Hook, Matching, failure_text

if TYPE_CHECKING:
    import numpy as np

ReadArray = Callable[[TensorRecord], "np.ndarray[Any, Any]"]


class HookStore(Mapping[str, Any]):
    """The group of one object as its ``load_own_variables`` expects it: arrays by name, read when they are looked up.

    Parameters
    ----------
    records : mapping of str to TensorRecord
        The datasets of the group.
    read : callable
        Reads one of them.
    """

    def __init__(self, records: Mapping[str, TensorRecord], read: ReadArray) -> None:
        self._records, self._read = records, read

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """Read a dataset."""
        return self._read(self._records[name])

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._records)

    def __len__(self) -> int:
        """Count the datasets."""
        return len(self._records)


class Rollback:
    """The values that variables had before a load touched them."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, Any]] = []

    def remember(self, variable: Any) -> None:
        """Keep the value of a variable; it is not copied."""
        value = getattr(variable, "_value", variable)
        self._before.append((variable, value.read_value() if hasattr(value, "read_value") else value))

    def restore(self) -> None:
        """Give all variables their old values back."""
        for variable, value in reversed(self._before):
            variable.assign(value)
        self._before.clear()


def run_hooks(matching: Matching, read: ReadArray, *, skip_mismatch: bool) -> tuple[Rollback, list[str], list[Failure]]:
    """Let objects load themselves.

    Returns
    -------
    (Rollback, list of str, list of Failure)
        The old values, the names of the variables that may have changed, and the objects whose method raised, if
        ``skip_mismatch`` allows that.

    Raises
    ------
    Mismatch
        An object's method raised; the text is Keras' own for a failed object.
    """
    rollback = Rollback()
    names: list[str] = []
    failures: list[Failure] = []
    for hook in matching.hooks:
        variables = _variables(hook.obj)
        for variable in variables:
            rollback.remember(variable)
        try:
            hook.obj.load_own_variables(HookStore(hook.records, read))
        except FastAssignError:
            rollback.restore()
            raise
        except Exception as error:
            if not skip_mismatch:
                rollback.restore()
                raise _failure(matching, hook, error) from error
            failures.append(Failure(hook.obj, str(error)))
            continue
        names += [str(getattr(variable, "path", None) or variable.name) for variable in variables]
    return rollback, names, failures


def _variables(obj: Any) -> list[Any]:
    # tf_keras lists the tables of its lookup layers among the variables; they have neither a value nor an assign.
    return [variable for variable in getattr(obj, "variables", ()) if hasattr(variable, "assign")]


def _failure(matching: Matching, hook: Hook, error: Exception) -> Mismatch:
    text = failure_text([Failure(hook.obj, str(error))]) if matching.library == "keras" else str(error)
    return Mismatch(text, tensor=f"{hook.path}/vars", hint="the layer's own load_own_variables raised this")
