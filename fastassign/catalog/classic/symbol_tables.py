"""Symbol tables: the members of groups in the classic HDF5 structure.

A symbol table is a B-tree, its leaves, and a local heap with the names. Anything unusual raises `NotClassicError`.

Section names in the docstrings are those of the *HDF5 File Format Specification*, version 3.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from struct import Struct

from fastassign.catalog.classic.messages import NotClassicError, decoded
from fastassign.catalog.classic.metadata import CACHED_GROUP, UNDEFINED, Metadata, Superblock

# The address of a node's child, and the heap offset of the key on its right.
_Child = tuple[int, int]

# More levels of nodes with two children or more would hold more links than any file.
_MAX_TREE_LEVEL = 40

# The end of the list of free blocks in a local heap.
_LAST_FREE = 1

_LOCAL_HEAP = Struct("<4sIQQQ")
_FREE_BLOCK = Struct("<QQ")
_TREE = Struct("<4sBBHQQ")
# A tree of one leaf, as nearly all are: the head of its node, the key on the left, the leaf, the key on the right.
_ONE_LEAF = Struct("<24sQQQ")
_ONE_LEAF_HEAD = b"TREE\x00\x00\x01\x00" + 16 * b"\xff"
_SYMBOLS = Struct("<4sBxH")
_SYMBOL = Struct("<QQI20x")


class SymbolTables:
    """Reads the members of groups.

    Parameters
    ----------
    metadata : Metadata
        The metadata of the file.
    superblock : Superblock
        The superblock of the file.
    max_links : int
        The most links that all groups may have together.
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
            # libhdf5 places the two side by side when it makes a group: they are read as one piece.
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
        """List names and addresses of all leaves, given the heap's buffer, its position there and its bytes."""
        limit = origin + room
        names: list[bytes] = []
        addresses: list[int] = []
        # A lookup goes by the keys: all names of a leaf are above the key on its left, and none is above the key on its
        # right. Ascending names also prove that none is there twice. The names don't overlap.
        last = _name(heap, origin + first, limit)
        for leaf, bound in leaves:
            for offset, address, cached in self._symbols(leaf):
                name = _name(heap, origin + offset, limit)
                room -= len(name) + 1
                if name <= last or room < 0 or cached > CACHED_GROUP:
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
        if b"." in names or b"/" in b"".join(names):  # these would change the meaning of a path
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
                # A node repeats the keys around it, and each leaf leads to at least one link.
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


@lru_cache(maxsize=64)
def _tree_entries(used: int) -> Struct:
    """Return the layout of a node's entries: children, with a key before, between and after them."""
    return Struct(f"<{2 * used + 1}Q")


def _check_free_blocks(heap: bytes, origin: int, nbytes: int, free: int) -> None:
    """Follow a local heap's list of free blocks; libhdf5 does, and fails on a bad list."""
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
