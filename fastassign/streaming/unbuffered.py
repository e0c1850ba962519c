"""Reads past the page cache, of whole pages of the file into whole pages of memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType

from fastassign.planning.lanes import PAGE_BYTES, whole_pages
from fastassign.streaming.source import Source, cut_short, read_some


class UnbufferedFile:
    """An open file, once more, past the page cache: a source, and a context.

    Parameters
    ----------
    descriptor : int
        The file descriptor; -1 for something that is not a local file.

    Raises
    ------
    OSError
        The file system, or the system, can't do that.
    """

    def __init__(self, descriptor: int) -> None:
        if descriptor < 0:
            raise OSError("it is not a local file")
        if not hasattr(os, "O_DIRECT"):
            raise OSError("this system has no O_DIRECT")
        # By the descriptor: its path may lead to another file by now.
        self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)

    def __enter__(self) -> UnbufferedFile:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        os.close(self._descriptor)

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Read whole pages into whole pages of memory; see ``fastassign.streaming.source.Source``."""
        return os.preadv(self._descriptor, buffers, offset)


def fill_pages(source: Source, view: memoryview, offset: int, nbytes: int) -> int:
    """Read the whole pages that hold ``nbytes`` bytes from ``offset`` on.

    Parameters
    ----------
    source : Source
        The source.
    view : memoryview
        Whole pages, two more than ``nbytes`` bytes fill.
    offset, nbytes : int
        The bytes that the caller wants.

    Returns
    -------
    int
        The position of those bytes in ``view``.

    Raises
    ------
    Truncated, ReadFailed
        As ``fastassign.streaming.source.fill``.
    """
    start = offset % PAGE_BYTES
    first, wanted = offset - start, start + nbytes
    whole = whole_pages(wanted)
    done = 0
    while done < wanted:
        reached = done + read_some(source, [view[done:whole]], first + done, whole - done)
        if reached < wanted:
            # The next read starts at a page; a source that ends within a page ends there for good.
            ended = reached % PAGE_BYTES
            reached -= ended
            if reached == done:
                raise cut_short(first + done + ended, wanted - done - ended)
        done = reached
    return start
