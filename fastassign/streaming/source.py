"""Sources of bytes, and reads that survive short answers and interruptions.

A source is a file, or in tests an object that behaves worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from fastassign.errors import ReadFailed, Truncated


class Source(Protocol):
    """Bytes that can be read at any offset, by several threads at once."""

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers in order from ``offset`` on; return the bytes read, 0 only at the end."""


def fill(source: Source, buffers: Sequence[memoryview], offset: int, nbytes: int) -> None:
    """Read exactly ``nbytes`` bytes, however many calls it takes.

    Parameters
    ----------
    source : Source
        The source.
    buffers : sequence of memoryview
        Byte buffers of ``nbytes`` bytes together.
    offset : int
        Offset of the first byte in the source.
    nbytes : int
        Bytes to read.

    Raises
    ------
    Truncated
        The source ends too early.
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
    """Read once, and again only if the read was interrupted; return the number of bytes read, at least one.

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
            failure = ReadFailed(f"reading {nbytes} bytes at offset {offset} failed: {error}")
            failure.errno = error.errno
            raise failure from error
        if count == 0:
            raise cut_short(offset, nbytes)
        return count


def cut_short(offset: int, nbytes: int) -> Truncated:
    """Return the error for a file that ends at byte ``offset`` where ``nbytes`` more bytes were needed."""
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
