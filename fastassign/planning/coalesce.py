"""From tensors in a file to a few large reads.

Pure arithmetic: tensors, sorted by their offsets, are cut into batches that are allocated and assigned together, and
each batch into reads that fill many buffers at once (``preadv``). The classes are named tuples, because a plan of 5,000
tensors makes 10,000 of them, and a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fastassign.catalog.records import Extent

# Buffers per read: Linux' IOV_MAX is 1024.
MAX_PIECES = 1000

# The owner of bytes that are read and dropped: those between two tensors.
GAP = -1


class Span(NamedTuple):
    """One extent to read; it fills the buffer of ``owner`` from byte ``start`` on."""

    owner: int
    extent: Extent
    start: int = 0


class Piece(NamedTuple):
    """Consecutive bytes of a read that go to one buffer; ``owner`` is ``GAP`` for bytes to drop."""

    owner: int
    start: int
    nbytes: int


class Read(NamedTuple):
    """One system call: ``nbytes`` from ``offset``, scattered over the pieces in order."""

    offset: int
    nbytes: int
    pieces: tuple[Piece, ...]


def split_batches(sizes: Sequence[int], *, batch_bytes: int) -> Iterator[range]:
    """Cut a sequence of tensors into batches of about ``batch_bytes``.

    Parameters
    ----------
    sizes : sequence of int
        Bytes of each tensor.
    batch_bytes : int
        The most bytes in a batch; a larger tensor gets a batch of its own.

    Yields
    ------
    range
        Positions of the tensors of one batch.
    """
    first = filled = 0
    for position, size in enumerate(sizes):
        if position > first and filled + size > batch_bytes:
            yield range(first, position)
            first, filled = position, 0
        filled += size
    if first < len(sizes):
        yield range(first, len(sizes))


def coalesce(spans: Sequence[Span], *, read_bytes: int, gap_bytes: int) -> list[Read]:
    """Turn the spans of one batch into reads.

    Parameters
    ----------
    spans : sequence of Span
        The extents to read, sorted by offset.
    read_bytes : int
        The most bytes per read; larger spans are cut.
    gap_bytes : int
        The most bytes between two spans that share a read; the bytes between them are read and dropped.

    Returns
    -------
    list of Read
        Reads that together fill every span once, in the order of the file.
    """
    reads: list[Read] = []
    pieces: list[Piece] = []
    first = end = 0
    for span in spans:
        offset, left, start = span.extent.offset, span.extent.nbytes, span.start
        gap = offset - end
        if pieces and (gap < 0 or gap > gap_bytes or end + gap - first >= read_bytes or len(pieces) + 2 > MAX_PIECES):
            reads.append(Read(first, end - first, tuple(pieces)))
            pieces = []
        if not pieces:
            first = end = offset
        elif gap:
            pieces.append(Piece(GAP, 0, gap))
            end = offset
        while left:
            room = read_bytes - (end - first)
            take = min(left, room)
            pieces.append(Piece(span.owner, start, take))
            end, start, left = end + take, start + take, left - take
            if left:
                reads.append(Read(first, end - first, tuple(pieces)))
                pieces, first = [], end
    if pieces:
        reads.append(Read(first, end - first, tuple(pieces)))
    return reads


def overlapping(extents: Sequence[tuple[Extent, str]]) -> tuple[str, str] | None:
    """Return the keys of two different tensors that share bytes, or ``None``."""
    last_end, last_key = 0, ""
    for extent, key in sorted(extents, key=lambda item: (item[0].offset, item[0].nbytes)):
        if extent.offset < last_end and key != last_key:
            return last_key, key
        if extent.offset + extent.nbytes > last_end:
            last_end, last_key = extent.offset + extent.nbytes, key
    return None
