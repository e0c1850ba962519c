"""The commit point of a load, after which variables change."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from fastassign.errors import Cancelled


class CommitPoint:
    """The point of no return: until it is passed, a load can be cancelled.

    A load that reads everything first passes it between its last read and its first assignment.

    Parameters
    ----------
    lock : context manager, optional
        The lock to hold while variables change.
    """

    def __init__(self, lock: AbstractContextManager[Any] | None = None) -> None:
        self._lock = lock or nullcontext()
        self._state_lock = threading.Lock()
        self._is_closed = self._is_passed = False

    @property
    def is_closed(self) -> bool:
        """Whether the load was stopped."""
        return self._is_closed

    def close(self) -> bool:
        """Stop the load, unless it has passed the point already; return whether it stops."""
        with self._state_lock:
            self._is_closed = not self._is_passed
            return self._is_closed

    def check(self) -> None:
        """Raise ``Cancelled`` if the load was stopped."""
        if self._is_closed:
            raise Cancelled("the load was cancelled; no variable was changed")

    def __enter__(self) -> None:
        """Take the lock and pass the point, or raise ``Cancelled``."""
        self._lock.__enter__()
        with self._state_lock:
            if not self._is_closed:
                self._is_passed = True
                return
        self._lock.__exit__(None, None, None)
        self.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._lock.__exit__(kind, error, trace)
