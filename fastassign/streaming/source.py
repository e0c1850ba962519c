"""Where bytes come from: the file, or in tests something that behaves worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastassign.errors import ReadFailed, Truncated


class Source(Protocol):
    """Something that can be read at any place, by several threads at once."""

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers in order from ``offset`` on; return the bytes read, 0 only at the end."""


def fill(source: Source, buffers: Sequence[memoryview], offset: int, nbytes: int) -> None:
    """Read exactly ``nbytes`` bytes, however many calls it takes.

    Parameters
    ----------
    source : Source
        Where to read.
    buffers : sequence of memoryview
        Byte buffers of ``nbytes`` bytes together.
    offset : int
        First byte.
    nbytes : int
        How many.

    Raises
    ------
    Truncated
        The source ends before.
    ReadFailed
        The storage reports an error.
    """
    done = 0
    rest: Sequence[memoryview] = buffers
    while done < nbytes:
        count = read_some(source, rest, offset + done, nbytes - done)
        done += count
        if done < nbytes:
            rest = _after(rest, count)


def read_some(source: Source, buffers: Sequence[memoryview], offset: int, nbytes: int) -> int:
    """Read once, interruptions aside, and return how many bytes that gave: at least one.

    Raises
    ------
    Truncated, ReadFailed
        As ``fill``.
    """
    while True:
        try:
            count = source.preadv(buffers, offset)
        except InterruptedError:
            continue
        except OSError as error:
            failure = ReadFailed(f"reading {nbytes} bytes at {offset} failed: {error}")
            failure.errno = error.errno
            raise failure from error
        if count == 0:
            raise cut_short(offset, nbytes)
        return count


def cut_short(offset: int, nbytes: int) -> Truncated:
    """Return the error of a file that ends at a byte, so many short of what was wanted."""
    return Truncated(
        f"the file ends at byte {offset}, {nbytes} bytes short",
        hint="the file was cut short while it was being read: copy or save it again",
    )


def _after(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    for position, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[position + 1 :]]
        count -= len(buffer)
    return []
