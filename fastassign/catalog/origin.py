"""Where values come from: a file, arrays in memory; other places can follow.

An origin says which records it has only through its catalog or its matching. What a load needs of it afterwards is
here: a path for reports, and something open that is read, decoded from, and asked whether it changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from fastassign.errors import FastAssignError

if TYPE_CHECKING:
    import numpy as np

    from fastassign.catalog.records import TensorRecord


class OpenOrigin(Protocol):
    """An origin that is open; a context.

    Threads: ``preadv``, ``decode`` and ``check_unchanged`` may be called from any thread at once.
    """

    @property
    def descriptor(self) -> int:
        """The file descriptor of a local file, for reads past the page cache; -1 where there is none."""

    def __enter__(self) -> OpenOrigin:
        """Return itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers in order from ``offset`` on; return the number of bytes read, 0 only at the end."""

    def decode(self, record: TensorRecord, array: np.ndarray[Any, Any]) -> None:
        """Fill an array of the record's shape with a tensor whose bytes do not stand in the file as they are."""

    def check_unchanged(self) -> None:
        """Raise ``Changed`` or ``Truncated`` if the origin was written to since it was opened."""


class Origin(Protocol):
    """A place that values come from.

    Attributes
    ----------
    path : pathlib.Path
        The file, or a name in place of one; reports show it.
    cached : bool
        Whether its index came from the cache.
    """

    @property
    def path(self) -> Path:
        """See ``Attributes``."""

    @property
    def cached(self) -> bool:
        """See ``Attributes``."""

    def open(self) -> OpenOrigin:
        """Open it for reading.

        Raises
        ------
        NotFound, Denied, NotAFile, Unreadable, Changed
            It can't be opened, or is no longer the one that was indexed.
        """

    def name_in(self, error: FastAssignError) -> FastAssignError:
        """Name the file in an error that does not name one, and return the error."""
