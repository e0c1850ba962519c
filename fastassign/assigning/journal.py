"""The journal of an execution: its progress, its report, and the old values to restore if it fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from fastassign.assigning.hooks import Rollback
from fastassign.assigning.work import Work
from fastassign.matching.assignment import Assignment, Failure
from fastassign.planning.routes import Placement
from fastassign.progress import Callback, ProgressEvent
from fastassign.report import Report
from fastassign.targets.target import Target


class Journal:
    """The journal of one execution, kept by the thread that assigns.

    Parameters
    ----------
    work : Work
        The load.
    progress : callable or None
        Gets a ``ProgressEvent`` for every entry.
    begin : float
        The time at which the execution began, by ``time.perf_counter``.

    Attributes
    ----------
    assigned : list of str
        The variables that have new values, or may have.
    read_bytes, done_bytes : int
        Bytes of the file that were read, and that were assigned.
    seconds : dict of str to float
        The duration of each stage of the execution.
    rollback : Rollback
        The old values.
    failures : list of Failure
        Objects whose own methods failed and that were skipped.
    cast, converted : list of str
        Variables whose values were cast or converted, each with a description.
    fallbacks : list of str
        The missing parts of the ways to devices, with their costs.
    """

    def __init__(self, work: Work, progress: Callback | None, begin: float) -> None:
        self.work = work
        self.assigned: list[str] = []
        self.read_bytes = self.done_bytes = 0
        self.seconds = {"wait": 0.0, "assign": 0.0}
        self.rollback = Rollback()
        self.failures: list[Failure] = list(work.matching.failures)
        self._progress, self._begin = progress, begin
        # Values fed to a session can't be taken back: fetching the old ones first would take as long as the load.
        self._is_reversible = work.atomic and work.session is None
        self.cast: list[str] = []
        self.converted: list[str] = []
        self.fallbacks: list[str] = list(work.schedule.fallbacks)
        self._routes: dict[str, int] = {}
        self._total_bytes = work.nbytes
        self._total = len(work.schedule.placements) + len(work.matching.conversions)

    def remember(self, target: Target) -> None:
        """Keep the value of a variable that is about to change."""
        # It is kept until the end: a callback may raise, or Ctrl-C come, after the first assignment.
        if self._is_reversible:
            self.rollback.remember(target.variable)

    def take_back(self) -> None:
        """Give the variables their old values back, if they were kept."""
        if self._is_reversible:
            self.rollback.restore()
            self.assigned.clear()

    def note_cast(self, assignment: Assignment) -> None:
        """Enter the cast of a value, if it was cast."""
        if assignment.fit == "cast" or assignment.record.detail.startswith("cast"):
            self.cast.append(f"{assignment.target.name}: {assignment.record.dtype} to {assignment.target.dtype}")

    def entering(self, placement: Placement) -> Entry:
        """Return a context in which to assign the variable of a placement; it makes the entry."""
        return Entry(self, placement)

    def enter(self, route: str, names: Sequence[str], nbytes: int = 0) -> None:
        """Enter the assignment of variables that are among ``assigned`` already, and report the progress."""
        self._routes[route] = self._routes.get(route, 0) + len(names)
        self.done_bytes += nbytes
        self.tell(names[-1])

    def tell(self, name: str = "") -> None:
        """Report the progress; ``name`` is the variable that was assigned last."""
        if self._progress is not None:
            self._progress(
                ProgressEvent(
                    read_bytes=max(self.read_bytes, self.done_bytes),
                    done_bytes=self.done_bytes,
                    total_bytes=self._total_bytes,
                    done_variables=len(self.assigned),
                    total_variables=max(self._total, len(self.assigned)),
                    seconds=time.perf_counter() - self._begin,
                    variable=name,
                )
            )

    @property
    def total(self) -> int:
        """The number of variables that the plan assigns itself, without those of hooks."""
        return self._total

    def report(self) -> Report:
        """Return the report of the execution."""
        work, matching = self.work, self.work.matching
        seconds = {**work.seconds, **self.seconds, "execute": time.perf_counter() - self._begin}
        seconds["total"] = sum(work.seconds.values()) + seconds["execute"]
        return Report(
            file=str(work.origin.path),
            assigned=len(self.assigned),
            cast=tuple(self.cast),
            skipped=(*matching.skipped, *(f"{failure.obj}: {failure.error}" for failure in self.failures)),
            repaired=tuple(matching.repaired),
            converted=tuple(self.converted),
            fallbacks=tuple(self.fallbacks),
            missing=tuple(target.name for target in matching.missing),
            unexpected=tuple(record.key for record in matching.unexpected),
            nbytes=work.nbytes,
            seconds=seconds,
            routes=self._routes,
            index_cached=work.origin.cached,
        )


class Entry:
    """The assignment of one variable, as a context; see ``Journal.entering``."""

    __slots__ = ("_journal", "_placement")

    def __init__(self, journal: Journal, placement: Placement) -> None:
        self._journal, self._placement = journal, placement

    def __enter__(self) -> None:
        """Name the variable, before it changes: an interrupt names one too many, never one too few."""
        target = self._placement.assignment.target
        self._journal.remember(target)
        self._journal.assigned.append(target.name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Enter the assignment, or take the name back if it failed."""
        journal, placement = self._journal, self._placement
        if error is None:
            journal.note_cast(placement.assignment)
            journal.enter(placement.route, (placement.assignment.target.name,), placement.nbytes)
        elif isinstance(error, Exception):
            journal.assigned.pop()
