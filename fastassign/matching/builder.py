"""A matching while it is being made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any, Literal

from fastassign.catalog.memory import ArrayRecord
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Mismatch
from fastassign.matching.assignment import Assignment, Conversion, Failure, Hook, Library, Matching, Notice, fit
from fastassign.matching.conversions.recipes import Recipe
from fastassign.targets.target import Layout, Target


class MatchingBuilder:
    """Collects the results of a matcher, one variable at a time.

    Parameters
    ----------
    library, layout
        See ``Matching``.
    """

    def __init__(self, library: Library, layout: Layout) -> None:
        self._library, self._layout = library, layout
        self._assignments: dict[int, Assignment] = {}
        self._conversions: dict[int, Conversion] = {}
        self._hooks: list[Hook] = []
        self._finalizers: list[Callable[[], None]] = []
        self._notices: list[Notice] = []
        self._failures: list[Failure] = []
        self._skipped: list[str] = []
        self._left_out: set[int] = set()
        self._repaired: list[str] = []

    def assign(self, value: TensorRecord | Recipe, target: Target) -> None:
        """Add an assignment whose shapes are known to agree.

        Raises
        ------
        Mismatch
            The stored bytes have no meaning as the variable's dtype; the text is stock's.
        """
        key = id(target.variable)
        # Of two values for one variable the later one stays, be it stored or converted.
        self._conversions.pop(key, None)
        if isinstance(value, TensorRecord) or not value.steps:
            record = value if isinstance(value, TensorRecord) else value.records[0]
            self._assignments[key] = Assignment(record, target, fit(record, target))
            return
        if not value.records:
            raise Mismatch(
                f"{target.name}: only the library's own loader converts weights of this old layout",
                variable=target.name,
                hint="load the file with model.load_weights",
            )
        self._assignments.pop(key, None)
        self._conversions[key] = Conversion(value, target, tuple(fit(record, target) for record in value.records))

    def assign_array(self, record: ArrayRecord, target: Target) -> None:
        """Add an array of the variable's shape; it is cast while it is copied."""
        self._assignments[id(target.variable)] = Assignment(record, target, "same")

    def add_hooks(self, hooks: Iterable[Hook]) -> None:
        """Add objects that load themselves."""
        self._hooks += hooks

    def add_finalizers(self, finalizers: Iterable[Callable[[], None]]) -> None:
        """Add functions to call once when all variables have their values."""
        self._finalizers += finalizers

    def warn(self, text: str, channel: Literal["warnings", "logging", "absl"] = "warnings") -> None:
        """Add a warning that stock gives, in its words and through its channel."""
        self._notices.append(Notice(text, channel))

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Add objects that do not fit and are left as they are."""
        self._failures += failures

    def skip(self, text: str) -> None:
        """Note a variable or layer that gets no value, and why."""
        self._skipped.append(text)

    def leave_out(self, name: str, variable: Any) -> None:
        """Note a variable that ``include`` and ``exclude`` leave as it is; noting it again changes nothing."""
        if id(variable) not in self._left_out:
            self._left_out.add(id(variable))
            self.skip(f"{name}: left out by include or exclude")

    def note_repair(self, text: str) -> None:
        """Note a layer whose weights were taken by name and not by position."""
        self._repaired.append(text)

    def build(self) -> Matching:
        """Return the results so far, as a value that later calls do not change."""
        return Matching(
            library=self._library,
            layout=self._layout,
            assignments=MappingProxyType(dict(self._assignments)),
            hooks=tuple(self._hooks),
            conversions=MappingProxyType(dict(self._conversions)),
            finalizers=tuple(self._finalizers),
            notices=tuple(self._notices),
            failures=tuple(self._failures),
            skipped=tuple(self._skipped),
            left_out=frozenset(self._left_out),
            repaired=tuple(self._repaired),
        )
