"""Bounded access to the metadata of a classic HDF5 file, by address, and its superblock.

Section names in the docstrings are those of the *HDF5 File Format Specification*, version 3.0.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from fastassign.catalog.classic.messages import NotClassicError

ReadAt = Callable[[int, int], bytes]
#: Returns a buffer and the position in it of ``nbytes`` bytes at an address; see `Metadata.view`.
View = Callable[[int, int], tuple[bytes, int]]

# Metadata is read in aligned blocks, because the pieces that belong to one group are within a few KiB, and its
# neighbours are beside them. Indexing took the same time within noise with blocks of 8 to 64 KiB; smaller blocks need
# more reads, larger ones carry more tensor data along. The last 4 MiB are kept.
_BLOCK_SHIFT = 14
_BLOCK_NBYTES = 1 << _BLOCK_SHIFT
_BLOCKS_KEPT = 256

#: The largest piece of metadata (the names of one group, the messages of one object) that is taken into memory.
MAX_PIECE = 1 << 26

#: Cache type of a symbol table entry with a group's addresses; 0 is an entry with nothing cached, 2 a soft link.
CACHED_GROUP = 1

#: The undefined address: the data or structure is not stored.
UNDEFINED = (1 << 64) - 1

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK = Struct("<8x8BHH4xQQQQ8xQI20x")


class Superblock(NamedTuple):
    """The addresses and sizes by which the rest of the file is read.

    Attributes
    ----------
    origin : int
        The offset in the outer file from which addresses count.
    end : int
        The first address past the HDF5 file.
    root : int
        The address of the root group's object header.
    max_symbols, max_children : int
        The room for entries in a leaf, and in a node, of a group's tree.
    """

    origin: int
    end: int
    root: int
    max_symbols: int
    max_children: int


def locate_superblock(read: ReadAt, *, base: int, size: int) -> Superblock:
    """Find and decode the superblock ("Format Signature and Superblock", version 0).

    Parameters
    ----------
    read : callable
        ``read(offset, nbytes)`` returns up to `nbytes` bytes from that offset of the outer file.
    base, size : int
        Where the HDF5 file begins in the outer file, and its bytes.

    Raises
    ------
    NotClassicError
        The file has no superblock, or one of another version.
    """
    skipped = 0
    while skipped + _SUPERBLOCK.size <= size:
        raw = read(base + skipped, _SUPERBLOCK.size)
        if raw.startswith(_SIGNATURE) and len(raw) == _SUPERBLOCK.size:
            return _decode_superblock(raw, base, size, skipped)
        skipped = 2 * skipped or 512  # the possible sizes of a user block
    raise NotClassicError


def _decode_superblock(raw: bytes, base: int, size: int, skipped: int) -> Superblock:
    *octets, leaf_k, inner_k, start, free_space, end, driver, root, cached = _SUPERBLOCK.unpack(raw)
    # Superblock, free space, root entry and shared messages in version 0; offsets and lengths of 8 bytes.
    if octets != [0, 0, 0, 0, 0, 8, 8, 0] or not leaf_k or not inner_k or cached > CACHED_GROUP:
        raise NotClassicError
    # The end of the file counts from the start of the user block, all other addresses from its end.
    if start != skipped or not skipped <= end <= size or (free_space, driver) != (UNDEFINED, UNDEFINED):
        raise NotClassicError
    return Superblock(base + skipped, end - skipped, root, 2 * leaf_k, 2 * inner_k)


class Metadata:
    """Cached access to the metadata of a file, by address.

    The pieces of metadata in a consistent file are disjoint, so all of them together are not larger than the file.
    `view` keeps that account, so that every walk ends, however the pieces point at each other.

    Parameters
    ----------
    read : callable
        As for `locate_superblock`.
    superblock : Superblock
        The superblock of the file.
    """

    __slots__ = ("_blocks", "_end", "_origin", "_read", "_unaccounted")

    def __init__(self, read: ReadAt, superblock: Superblock) -> None:
        self._read = read
        self._origin = superblock.origin
        self._end = self._unaccounted = superblock.end
        self._blocks: dict[int, bytes] = {}

    def view(self, address: int, nbytes: int) -> tuple[bytes, int]:
        """Return a buffer that holds a piece in full, and the position of the piece in it."""
        self._unaccounted -= nbytes
        if self._unaccounted < 0:
            raise NotClassicError
        block = self._blocks.get(address >> _BLOCK_SHIFT)
        start = address & (_BLOCK_NBYTES - 1)
        if block is None or start + nbytes > len(block):
            return self._fetch(address, nbytes)
        return block, start

    def _fetch(self, address: int, nbytes: int) -> tuple[bytes, int]:
        """Read the block that holds a piece, or the piece alone where it crosses the end of its block."""
        if address + nbytes > self._end or nbytes > MAX_PIECE:
            raise NotClassicError
        index, start = divmod(address, _BLOCK_NBYTES)
        if start + nbytes > _BLOCK_NBYTES:
            return self._exactly(address, nbytes), 0
        if len(self._blocks) == _BLOCKS_KEPT:
            del self._blocks[next(iter(self._blocks))]
        first = address - start
        block = self._blocks[index] = self._exactly(first, min(_BLOCK_NBYTES, self._end - first))
        return block, start

    def _exactly(self, address: int, nbytes: int) -> bytes:
        piece = self._read(self._origin + address, nbytes)
        if len(piece) != nbytes:
            raise NotClassicError
        return piece
