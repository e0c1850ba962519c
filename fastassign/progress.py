"""The progress of a load while it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """The state of a load after a variable was assigned; if everything is read first, also during the reading.

    Attributes
    ----------
    read_bytes : int
        Bytes of the file's tensors that have been read.
    done_bytes, total_bytes : int
        Bytes of the file's tensors that are in their variables, and that will be in the end.
    done_variables, total_variables : int
        The variables that have their values, and that will have them in the end.
    seconds : float
        Seconds since reading began.
    variable : str
        The variable that was assigned last; empty before the first.
    """

    read_bytes: int
    done_bytes: int
    total_bytes: int
    done_variables: int
    total_variables: int
    seconds: float
    variable: str


Callback = Callable[[ProgressEvent], None]


@contextmanager
def reporting(progress: bool | Callback | None) -> Iterator[Callback | None]:
    """Give the callback for a ``progress`` argument: one that draws a bar, the caller's own, or none.

    Parameters
    ----------
    progress : bool or callable, optional
        ``True`` shows a bar if standard error is a terminal; a callable gets every ``ProgressEvent``, in the thread
        that loads.
    """
    if callable(progress):
        yield progress
    elif progress and sys.stderr.isatty():
        with _bar() as callback:
            yield callback
    else:
        yield None


@contextmanager
def _bar() -> Iterator[Callback]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("loading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[name]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("loading", total=None, name="")
        shown = 0.0

        def update(event: ProgressEvent) -> None:
            nonlocal shown
            now = time.monotonic()
            # The bar is drawn ten times a second; more updates would only slow the load down.
            if now - shown >= 0.1 or event.done_bytes == event.total_bytes:
                shown = now
                bar.update(
                    task,
                    completed=max(event.read_bytes, event.done_bytes),
                    total=event.total_bytes,
                    name=event.variable,
                )

        yield update
