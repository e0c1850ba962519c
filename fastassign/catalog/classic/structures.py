"""The structures of the classic HDF5 file format that lead to objects and strings.

Superblock, symbol tables (a B-tree, its leaves, and a local heap with the names) and the global heap, each read
through `Metadata`, which bounds what may be looked at. Whatever is unusual raises `NotClassicError`.

Section names in the docstrings are those of the *HDF5 File Format Specification*, version 3.0.
Not here: the objects themselves (``classic``) and their messages (``classic_messages``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from fastassign.catalog.classic.messages import NotClassicError

ReadAt = Callable[[int, int], bytes]

# The address of what is below a node, and the heap offset of the key on its right.
_Child = tuple[int, int]

# Metadata is read in aligned blocks: what belongs to one group stands within a few KiB, its neighbours beside
# it. Indexing took the same time within noise with blocks of 8 to 64 KiB; smaller ones need more reads, larger
# ones carry more tensor data along. The last 4 MiB are kept.
_BLOCK_SHIFT = 14
_BLOCK_NBYTES = 1 << _BLOCK_SHIFT
_BLOCKS_KEPT = 256

#: The largest piece of metadata (the names of one group, the messages of one object) that is taken into memory.
MAX_PIECE = 1 << 26

# A larger object in a global heap is a model's configuration, which is of no interest here.
_MAX_STRING = 1 << 16

# More levels of nodes with two children or more hold more links than any file.
_MAX_TREE_LEVEL = 40

# What ends the list of free blocks in a local heap.
_LAST_FREE = 1

# Cache types of symbol table entries: nothing cached, a group's addresses, and (beyond) a soft link.
_CACHED_GROUP = 1

#: The address of what is not stored.
UNDEFINED = (1 << 64) - 1

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK = Struct("<8x8BHH4xQQQQ8xQI20x")
_LOCAL_HEAP = Struct("<4sIQQQ")
_FREE_BLOCK = Struct("<QQ")
_TREE = Struct("<4sBBHQQ")
# A tree of one leaf, as nearly all are: the head of its node, the key on the left, the leaf, the key on the right.
_ONE_LEAF = Struct("<24sQQQ")
_ONE_LEAF_HEAD = b"TREE\x00\x00\x01\x00" + 16 * b"\xff"
_SYMBOLS = Struct("<4sBxH")
_SYMBOL = Struct("<QQI20x")
_COLLECTION = Struct("<4sIQ")
_HEAP_OBJECT = Struct("<H6xQ")


class Superblock(NamedTuple):
    """What the rest of the file is read by.

    Attributes
    ----------
    origin : int
        The offset in the outer file from which addresses count.
    end : int
        The first address past the HDF5 file.
    root : int
        The address of the root group's object header.
    max_symbols, max_children : int
        The entries that a leaf, and a node, of a group's tree has room for.
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
        There is none, or one of another version.
    """
    skipped = 0
    while skipped + _SUPERBLOCK.size <= size:
        raw = read(base + skipped, _SUPERBLOCK.size)
        if raw.startswith(_SIGNATURE) and len(raw) == _SUPERBLOCK.size:
            return _decode_superblock(raw, base, size, skipped)
        skipped = 2 * skipped or 512  # the sizes that a user block may have
    raise NotClassicError


def _decode_superblock(raw: bytes, base: int, size: int, skipped: int) -> Superblock:
    *octets, leaf_k, inner_k, start, free_space, end, driver, root, cached = _SUPERBLOCK.unpack(raw)
    # Superblock, free space, root entry and shared messages in version 0; offsets and lengths of 8 bytes.
    if octets != [0, 0, 0, 0, 0, 8, 8, 0] or not leaf_k or not inner_k or cached > _CACHED_GROUP:
        raise NotClassicError
    # The end of the file counts from the first byte of the user block, all other addresses from behind it.
    if start != skipped or not skipped <= end <= size or (free_space, driver) != (UNDEFINED, UNDEFINED):
        raise NotClassicError
    return Superblock(base + skipped, end - skipped, root, 2 * leaf_k, 2 * inner_k)


class Metadata:
    """Cached access to the metadata of a file, by address.

    The pieces of metadata in a consistent file are disjoint, so all of them together are not larger than the
    file. `view` keeps that account: it is what makes every walk end, however the pieces point at each other.

    Parameters
    ----------
    read : callable
        As for `locate_superblock`.
    superblock : Superblock
        The file's.
    """

    __slots__ = ("_blocks", "_end", "_origin", "_read", "_unaccounted")

    def __init__(self, read: ReadAt, superblock: Superblock) -> None:
        self._read = read
        self._origin = superblock.origin
        self._end = self._unaccounted = superblock.end
        self._blocks: dict[int, bytes] = {}

    def view(self, address: int, nbytes: int) -> tuple[bytes, int]:
        """Return a buffer, and the position in it from which on the piece stands in full."""
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


class SymbolTables:
    """The members of groups.

    Parameters
    ----------
    metadata : Metadata
        The file's.
    superblock : Superblock
        The file's.
    max_links : int
        How many links all groups may have together.
    """

    __slots__ = ("_links_left", "_max_children", "_max_symbols", "_pair", "_symbols_nbytes", "_tree_nbytes", "_view")

    def __init__(self, metadata: Metadata, superblock: Superblock, max_links: int) -> None:
        self._view = metadata.view
        self._links_left = max_links
        self._max_symbols = superblock.max_symbols
        self._symbols_nbytes = _SYMBOLS.size + _SYMBOL.size * superblock.max_symbols
        self._max_children = superblock.max_children
        self._tree_nbytes = _TREE.size + 16 * superblock.max_children + 8
        self._pair = Struct(f"{_ONE_LEAF.format}{self._tree_nbytes - _ONE_LEAF.size}x4sIQQQ")

    def members(self, tree: int, local_heap: int) -> tuple[tuple[str, ...], list[int]]:
        """List a group's names, in ascending order, and the object headers that they lead to.

        Parameters
        ----------
        tree, local_heap : int
            The addresses in the group's symbol table message.

        Raises
        ------
        NotClassicError
            For soft links, names that h5py could not look up, more links than allowed, or any inconsistency.
        """
        if local_heap == tree + self._tree_nbytes:
            # How libhdf5 places the two when it makes a group: one piece, one unpacking.
            buffer, position = self._view(tree, self._pair.size)
            entries = self._pair.unpack_from(buffer, position)
            (head, first, leaf, bound), heap_head = entries[:4], entries[4:]
        else:
            buffer, position = self._view(local_heap, _LOCAL_HEAP.size)
            heap_head = _LOCAL_HEAP.unpack_from(buffer, position)
            buffer, position = self._view(tree, self._tree_nbytes)
            head, first, leaf, bound = _ONE_LEAF.unpack_from(buffer, position)
        leaves = [(leaf, bound)]
        if head != _ONE_LEAF_HEAD:
            first, leaves = self._leaves(buffer, position)
        signature, version, nbytes, free, segment = heap_head
        if signature != b"HEAP" or version:
            raise NotClassicError
        heap, origin = self._view(segment, nbytes)
        _check_free_blocks(heap, origin, nbytes, free)
        return self._links(heap, origin, nbytes, first, leaves)

    def _links(
        self, heap: bytes, origin: int, room: int, first: int, leaves: list[_Child]
    ) -> tuple[tuple[str, ...], list[int]]:
        """List names and addresses of all leaves, given the heap's buffer, its place in there and its bytes."""
        limit = origin + room
        names: list[bytes] = []
        addresses: list[int] = []
        # A lookup goes by the keys: all names of a leaf are above the key on its left, and none is above the
        # one on its right. Ascending also means that no name is there twice. The names don't overlap.
        last = _name(heap, origin + first, limit)
        for leaf, bound in leaves:
            for offset, address, cached in self._symbols(leaf):
                name = _name(heap, origin + offset, limit)
                room -= len(name) + 1
                if name <= last or room < 0 or cached > _CACHED_GROUP:
                    raise NotClassicError
                names.append(name)
                addresses.append(address)
                last = name
            if bound != offset:  # the last name was removed since
                key = _name(heap, origin + bound, limit)
                room -= len(key) + 1
                if last > key or room < 0:
                    raise NotClassicError
                last = key
        if b"." in names or b"/" in b"".join(names):  # these would change what a path means
            raise NotClassicError
        return decoded(names), addresses

    def _symbols(self, leaf: int) -> Iterator[tuple[int, int, int]]:
        """Iterate over name offset, object header and cache type of a leaf ("Group Symbol Table Nodes")."""
        buffer, position = self._view(leaf, self._symbols_nbytes)
        signature, version, count = _SYMBOLS.unpack_from(buffer, position)
        if signature != b"SNOD" or version != 1 or not 0 < count <= self._max_symbols:
            raise NotClassicError
        self._links_left -= count
        if self._links_left < 0:
            raise NotClassicError
        start = position + _SYMBOLS.size
        return _SYMBOL.iter_unpack(buffer[start : start + count * _SYMBOL.size])

    def _leaves(self, buffer: bytes, position: int) -> tuple[int, list[_Child]]:
        """List the leaves below a tree's root node, after the key on the left of all of them."""
        level, first, nodes = self._tree_node(buffer, position, UNDEFINED, UNDEFINED)
        while level:
            level -= 1
            below: list[_Child] = []
            low, left = first, UNDEFINED
            rights = [address for address, _ in nodes[1:]] + [UNDEFINED]
            for (address, high), right in zip(nodes, rights, strict=True):
                buffer, position = self._view(address, self._tree_nbytes)
                found, key, children = self._tree_node(buffer, position, left, right)
                # The keys around a node are repeated in it, and each leaf leads to one link at least.
                if (found, key) != (level, low) or not children or children[-1][1] != high:
                    raise NotClassicError
                below += children
                if len(below) > self._links_left:
                    raise NotClassicError
                low, left = high, address
            nodes = below
        return first, nodes

    def _tree_node(self, buffer: bytes, position: int, left: int, right: int) -> tuple[int, int, list[_Child]]:
        """Decode level, leftmost key and children of a node ("Version 1 B-trees", node type 0)."""
        signature, kind, level, used, *siblings = _TREE.unpack_from(buffer, position)
        if (signature, kind, siblings) != (b"TREE", 0, [left, right]):
            raise NotClassicError
        if level > _MAX_TREE_LEVEL or used > self._max_children:
            raise NotClassicError
        entries = _tree_entries(used).unpack_from(buffer, position + _TREE.size)
        return level, entries[0], list(zip(entries[1::2], entries[2::2], strict=True))


class GlobalHeap:
    """Variable-length strings.

    Parameters
    ----------
    metadata : Metadata
        The file's.
    max_objects, max_bytes : int
        What the collections that are read may hold together; objects too large for a name do not count.
    """

    __slots__ = ("_bytes_left", "_collections", "_objects_left", "_view")

    def __init__(self, metadata: Metadata, max_objects: int, max_bytes: int) -> None:
        self._view = metadata.view
        self._objects_left = max_objects
        self._bytes_left = max_bytes
        self._collections: dict[int, dict[int, bytes]] = {}

    def read(self, nbytes: int, collection: int, index: int) -> bytes:
        """Return an object that must have `nbytes` bytes, given its "Global Heap ID".

        Raises
        ------
        NotClassicError
            There is no such object, it is too large for a name, or the collection holds more than allowed.
        """
        if not nbytes and not collection:  # how an empty string is stored
            return b""
        objects = self._collections.get(collection)
        if objects is None:
            objects = self._collections[collection] = self._objects(collection)
        found = objects.get(index)
        if found is None or len(found) != nbytes:
            raise NotClassicError
        return found

    def _objects(self, collection: int) -> dict[int, bytes]:
        """Read a collection's objects, by their index ("Global Heap")."""
        buffer, position = self._view(collection, _COLLECTION.size)
        signature, version, size = _COLLECTION.unpack_from(buffer, position)
        if signature != b"GCOL" or version != 1 or size < _COLLECTION.size:
            raise NotClassicError
        buffer, position = self._view(collection + _COLLECTION.size, size - _COLLECTION.size)
        end = position + size - _COLLECTION.size
        objects: dict[int, bytes] = {}
        seen = 0
        while position + _HEAP_OBJECT.size <= end:
            index, nbytes = _HEAP_OBJECT.unpack_from(buffer, position)
            if not index:  # the free space, which is last; its size includes these 16 bytes
                if position + nbytes != end:
                    raise NotClassicError
                break
            position += _HEAP_OBJECT.size
            if index in objects or position + nbytes > end:
                raise NotClassicError
            seen += 1
            if nbytes <= _MAX_STRING:
                objects[index] = buffer[position : position + nbytes]
                self._bytes_left -= nbytes
            position += (nbytes + 7) & ~7
        self._objects_left -= seen
        if self._objects_left < 0 or self._bytes_left < 0:
            raise NotClassicError
        return objects


@lru_cache(maxsize=64)
def _tree_entries(used: int) -> Struct:
    """Return the form of a node's entries: children, with a key before, between and after them."""
    return Struct(f"<{2 * used + 1}Q")


def _check_free_blocks(heap: bytes, origin: int, nbytes: int, free: int) -> None:
    """Follow a local heap's list of free blocks as libhdf5 does, which fails on a bad one."""
    room = nbytes
    while free != _LAST_FREE:
        if free + _FREE_BLOCK.size > nbytes:
            raise NotClassicError
        following, size = _FREE_BLOCK.unpack_from(heap, origin + free)
        room -= size
        if size < _FREE_BLOCK.size or free + size > nbytes or room < 0:
            raise NotClassicError
        free = following


def _name(heap: bytes, start: int, limit: int) -> bytes:
    end = heap.find(b"\0", start, limit)
    if end < 0:
        raise NotClassicError
    return heap[start:end]


def decoded(encoded: list[bytes]) -> tuple[str, ...]:
    """Decode strings in UTF-8 (or ASCII, which is a part of it).

    Raises
    ------
    NotClassicError
        One of them is something else, or holds a NUL, at which h5py would cut it.
    """
    if not encoded:
        return ()
    try:
        texts = b"\0".join(encoded).decode().split("\0")
    except UnicodeDecodeError:
        raise NotClassicError from None
    if len(texts) != len(encoded):
        raise NotClassicError
    return tuple(texts)
