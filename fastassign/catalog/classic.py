"""Index of an HDF5 file in the classic structure, without libhdf5.

Keras writes its weight files with h5py's defaults: superblock version 0, version-1 object headers, groups as
symbol tables, contiguous datasets. libhdf5 needs 50 to 80 microseconds for each object of such a file, most of
them for caches and locks that a single pass over the metadata does not need; here an object takes below ten.

This is a fast lane, not a second HDF5 library. It answers only where everything that it looks at is ordinary
and consistent, and returns None otherwise: then h5py reads the file, and h5py's errors and the policy's
refusals are the ones that count. A hostile file can cost time bounded by its own size, never an exception, and
never a record that points out of the file.

Section names in the docstrings are those of the *HDF5 File Format Specification*, version 3.0.
Not here: the content of header messages (``classic_messages``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from fastassign.catalog.classic_messages import (
    DATATYPES,
    Attribute,
    NotClassic,
    attribute,
    attribute_strings,
    dataspace,
    layout,
    padded,
)
from fastassign.catalog.records import Contents, Extent, TensorRecord

if TYPE_CHECKING:
    from fastassign.catalog.policy import Limits

ReadAt = Callable[[int, int], bytes]

# A child's address in a group's tree, and the heap offset of the last name below it or of a later one.
_Child = tuple[int, int]

# All of a dataset header but 16 bytes: its counts of messages and bytes, what stands before and after those 16.
_FormKey = tuple[int, int, int, bytes, bytes]

# Metadata is read in aligned blocks: what belongs to one group stands within a few KiB, its neighbours beside
# it. Indexing took the same time within noise with blocks of 8 to 64 KiB; smaller ones need more reads, larger
# ones read more tensor data along. The last 4 MiB are kept.
_BLOCK_SHIFT = 14
_BLOCK_NBYTES = 1 << _BLOCK_SHIFT
_BLOCKS_KEPT = 256

# The largest piece of metadata (names of one group, messages of one object) that is taken into memory.
_MAX_PIECE = 1 << 26

# Dataset headers that are remembered, and the size of one: h5py makes them 256 bytes.
_MAX_FORMS = 4096
_MAX_FORM_NBYTES = 512

# Two children or more in each node, so many levels: no file holds that many.
_MAX_TREE_LEVEL = 40

_UNDEFINED = (1 << 64) - 1

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SUPERBLOCK = Struct("<8x8BHH4xQQQQ8xQ24x")
_PREFIX = Struct("<BxH4xI4x")
_MESSAGE = Struct("<HHB3x")
_PAIR = Struct("<QQ")
_HEAP = Struct("<4sIQ8xQ")
_TREE = Struct("<4sBBH16x")
_SYMBOLS = Struct("<4sBxH")
_SYMBOL = Struct("<QQI20x")
_COLLECTION = Struct("<4sIQ")
_HEAP_OBJECT = Struct("<H6xQ")
_REFERENCE = Struct("<IQI")

# Header message types ("Data Object Header Messages").
_DATASPACE, _DATATYPE, _LAYOUT, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0x01, 0x03, 0x08, 0x0C, 0x10, 0x11
# NIL, both fill values, comment, both modification times: they don't change what a written dataset holds.
_IGNORED = frozenset((0x00, 0x04, 0x05, 0x0D, 0x0E, 0x12))
_SHARED = 0x02
# What makes an object a group, or a dataset; each message stands there once.
_GROUP = frozenset((_SYMBOL_TABLE,))
_DATASET = frozenset((_DATASPACE, _DATATYPE, _LAYOUT))
_ONCE = _GROUP | _DATASET

# How the message of a contiguous layout begins (type and size), and the bytes of its version and class.
_LAYOUT_HEAD = b"\x08\x00\x18\x00"
_LAYOUT_CLASS = 2

# The attributes that the Keras layouts are made of; long lists are split into layer_names0, layer_names1, ...
_is_text = re.compile(rb"(?:layer_names|weight_names)[0-9]*|keras_version|backend|name").fullmatch
# Keras marks its two-byte opaque form by this attribute of the dataset.
_MARK = b"dtype"


def read_contents(read: ReadAt, *, base: int, size: int, limits: Limits) -> Contents | None:
    """Index a classic HDF5 file.

    Parameters
    ----------
    read : callable
        ``read(offset, nbytes)`` returns up to `nbytes` bytes from that offset of the outer file. Errors that it
        raises are passed on.
    base : int
        Where the HDF5 file begins in the outer file, in bytes.
    size : int
        The bytes of the HDF5 file, from `base` on.
    limits : Limits
        Beyond these the answer is None. ``max_objects`` bounds the links and, apart from them, the strings in
        global heaps; ``max_text_bytes`` the text attributes and, apart from them, the group paths in keys.

    Returns
    -------
    Contents or None
        What the file holds, with extents in offsets of the outer file and the text attributes of groups; None
        if anything in the file is outside of the subset, or inconsistent. There are never refusals.
    """
    try:
        superblock = _locate_superblock(read, base, size)
        return _Walk(_Metadata(read, superblock), superblock, limits).contents()
    except NotClassic:
        return None


class _Superblock(NamedTuple):
    """Addresses count from `origin` in the outer file; `end` is the first address past the HDF5 file."""

    origin: int
    end: int
    root: int
    max_symbols: int
    max_children: int


class _Header(NamedTuple):
    """The messages of one object that matter here, by type, and in how many chunks they stood."""

    messages: dict[int, bytes]
    layout_address: int
    attributes: list[Attribute]
    chunks: int


class _Form(NamedTuple):
    """What datasets may have in common."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def _locate_superblock(read: ReadAt, base: int, size: int) -> _Superblock:
    """Find and decode the superblock ("Format Signature and Superblock", version 0)."""
    skipped = 0
    while skipped + _SUPERBLOCK.size <= size:
        raw = read(base + skipped, _SUPERBLOCK.size)
        if raw.startswith(_SIGNATURE) and len(raw) == _SUPERBLOCK.size:
            return _decode_superblock(raw, base, size, skipped)
        skipped = 2 * skipped or 512  # the user block may have any of these sizes
    raise NotClassic


def _decode_superblock(raw: bytes, base: int, size: int, skipped: int) -> _Superblock:
    *octets, leaf_k, inner_k, start, free_space, end, driver, root = _SUPERBLOCK.unpack(raw)
    # Superblock, free space, root entry and shared messages in version 0; offsets and lengths of 8 bytes.
    if octets != [0, 0, 0, 0, 0, 8, 8, 0] or not leaf_k or not inner_k:
        raise NotClassic
    # The end of the file counts from the first byte of the user block, all other addresses from behind it.
    if start != skipped or not skipped <= end <= size or (free_space, driver) != (_UNDEFINED, _UNDEFINED):
        raise NotClassic
    return _Superblock(base + skipped, end - skipped, root, 2 * leaf_k, 2 * inner_k)


class _Metadata:
    """Cached access to the metadata of a file, by address.

    The pieces of metadata in a consistent file are disjoint, so all of them together are not larger than the
    file. `view` keeps that account: it is what makes every walk end, however the pieces point at each other.
    """

    __slots__ = ("_blocks", "_end", "_origin", "_read", "_unaccounted")

    def __init__(self, read: ReadAt, superblock: _Superblock) -> None:
        self._read = read
        self._origin = superblock.origin
        self._end = self._unaccounted = superblock.end
        self._blocks: dict[int, bytes] = {}

    def view(self, address: int, nbytes: int) -> tuple[bytes, int]:
        """Return a buffer, and the position in it from which on the piece stands in full."""
        self._unaccounted -= nbytes
        if self._unaccounted < 0:
            raise NotClassic
        block = self._blocks.get(address >> _BLOCK_SHIFT)
        start = address & (_BLOCK_NBYTES - 1)
        if block is None or start + nbytes > len(block):
            return self._fetch(address, nbytes)
        return block, start

    def _fetch(self, address: int, nbytes: int) -> tuple[bytes, int]:
        """Read the block that holds a piece, or the piece alone where it crosses the end of its block."""
        if address + nbytes > self._end or nbytes > _MAX_PIECE:
            raise NotClassic
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
            raise NotClassic
        return piece


class _Walk:
    """One pass over the objects of a file."""

    def __init__(self, metadata: _Metadata, superblock: _Superblock, limits: Limits) -> None:
        self._view = metadata.view
        self._file = superblock
        self._limits = limits
        self._tree_nbytes = _TREE.size + 16 * superblock.max_children + 8
        self._symbols_nbytes = _SYMBOLS.size + _SYMBOL.size * superblock.max_symbols
        self._links_left = self._strings_left = limits.max_objects
        self._text_left = self._prefixes_left = limits.max_text_bytes
        self._seen: set[int] = set()
        self._forms: dict[_FormKey, _Form] = {}
        self._collections: dict[int, dict[int, tuple[int, int]]] = {}
        self._spans: list[tuple[int, int]] = []
        self._records: dict[str, TensorRecord] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._texts: dict[tuple[str, str], tuple[str, ...]] = {}

    def contents(self) -> Contents:
        """Walk the file from its root, in the order of the names."""
        waiting = [("", self._file.root, 0)]
        while waiting:
            path, address, depth = waiting.pop()
            if address in self._seen:  # a second hard link to the object, or a cycle
                raise NotClassic
            self._seen.add(address)
            table = self._object(path, address)
            if table is None:
                continue
            names, children = self._members(table)
            self._groups[path] = tuple(names)
            prefix = f"{path}/" if path else ""
            self._prefixes_left -= len(prefix) * len(names)
            if depth > self._limits.max_depth or self._prefixes_left < 0:
                raise NotClassic
            depth += 1
            waiting += [
                (prefix + name, child, depth)
                for name, child in zip(reversed(names), reversed(children), strict=True)
            ]
        self._check_overlaps()
        return Contents(self._records, self._groups, {}, self._texts)

    def _object(self, path: str, address: int) -> bytes | None:
        """Enter a dataset, or the texts of a group; return the group's symbol table message."""
        buffer, position = self._view(address, _PREFIX.size)
        version, expected, nbytes = _PREFIX.unpack_from(buffer, position)
        if version != 1:
            raise NotClassic
        chunk = address + _PREFIX.size
        buffer, origin = self._view(chunk, nbytes)

        # Most datasets of a file have headers that differ only in where the data stands. Those 16 bytes don't
        # bear on how the rest is read, so headers that are equal without them hold the same messages. The
        # search may hit other bytes than the layout message; then no form is kept under that key.
        fields = buffer.find(_LAYOUT_HEAD, origin, origin + nbytes) + _MESSAGE.size + _LAYOUT_CLASS
        place = fields - origin
        key = (expected, nbytes, place, buffer[origin:fields], buffer[fields + _PAIR.size : origin + nbytes])
        form = self._forms.get(key)
        if form is not None:
            data, stored = _PAIR.unpack_from(buffer, fields)
            self._add_dataset(path, form, data, stored)
            return None

        header = self._header(chunk, nbytes, expected)
        if header.messages.keys() == _GROUP:
            self._add_texts(path, header.attributes)
            return header.messages[_SYMBOL_TABLE]
        if header.messages.keys() != _DATASET:
            raise NotClassic
        form = self._form(header)
        contiguous, data, stored = layout(header.messages[_LAYOUT])
        if not contiguous:
            data += header.layout_address
        elif header.chunks == 1 and header.layout_address - chunk == place - _LAYOUT_CLASS:
            self._keep_form(key, form)
        self._add_dataset(path, form, data, stored)
        return None

    def _header(self, chunk: int, nbytes: int, expected: int) -> _Header:
        """Collect an object's messages from all chunks of its header ("Version 1 Data Object Header Prefix")."""
        messages: dict[int, bytes] = {}
        layout_address = 0
        attributes: list[Attribute] = []
        chunks = [(chunk, nbytes)]
        room = _MAX_PIECE
        for address, size in chunks:  # continuations are appended on the way
            room -= size
            if room < 0:
                raise NotClassic
            buffer, origin = self._view(address, size)
            position, end = origin, origin + size
            while position < end:
                if end - position < _MESSAGE.size:
                    raise NotClassic
                kind, length, flags = _MESSAGE.unpack_from(buffer, position)
                start = position + _MESSAGE.size
                position = start + length
                if position > end or flags & _SHARED or length & 7:
                    raise NotClassic
                expected -= 1
                if kind in _IGNORED:
                    continue
                body = buffer[start:position]
                if kind == _ATTRIBUTE:
                    parts = attribute(body)
                    if parts.name == _MARK or _is_text(parts.name):
                        attributes.append(parts)
                elif kind == _CONTINUATION and length >= _PAIR.size:
                    chunks.append(_PAIR.unpack_from(body))
                elif kind in _ONCE and kind not in messages:
                    messages[kind] = body
                    if kind == _LAYOUT:
                        layout_address = address + start - origin
                else:
                    raise NotClassic
        if expected:
            raise NotClassic
        return _Header(messages, layout_address, attributes, len(chunks))

    def _form(self, header: _Header) -> _Form:
        known = DATATYPES.get(header.messages[_DATATYPE])
        if known is None:
            raise NotClassic
        dtype, itemsize = known
        if dtype == "|V2":
            marks = [self._strings(parts) for parts in header.attributes if parts.name == _MARK]
            dtype = "bfloat16" if marks == [("bfloat16",)] else dtype
        shape, count = dataspace(header.messages[_DATASPACE])
        return _Form(shape, dtype, count * itemsize)

    def _keep_form(self, key: _FormKey, form: _Form) -> None:
        if key[1] <= _MAX_FORM_NBYTES and len(self._forms) < _MAX_FORMS:
            self._forms[key] = form

    def _add_dataset(self, path: str, form: _Form, address: int, stored: int) -> None:
        shape, dtype, nbytes = form
        extents: tuple[Extent, ...] = ()
        if nbytes:
            stop = address + nbytes
            # The second also keeps out the undefined address of a dataset that was never written.
            if stored != nbytes or stop > self._file.end:
                raise NotClassic
            self._spans.append((address, stop))
            extents = (Extent(self._file.origin + address, nbytes),)
        self._records[path] = TensorRecord(path, shape, dtype, "raw", extents)

    def _add_texts(self, path: str, attributes: list[Attribute]) -> None:
        for parts in attributes:
            if parts.name == _MARK:
                continue
            key = (path, parts.name.decode("ascii"))
            if key in self._texts:
                raise NotClassic
            self._texts[key] = self._strings(parts)

    def _members(self, table: bytes) -> tuple[list[str], list[int]]:
        """List a group's names and the addresses behind them ("Symbol Table Message", "Local Heaps")."""
        if len(table) < _PAIR.size:
            raise NotClassic
        tree, heap = _PAIR.unpack_from(table)
        buffer, position = self._view(heap, _HEAP.size)
        signature, version, nbytes, segment = _HEAP.unpack_from(buffer, position)
        if signature != b"HEAP" or version:
            raise NotClassic
        heap, origin = self._view(segment, nbytes)
        limit = origin + nbytes

        names: list[str] = []
        children: list[int] = []
        room = nbytes
        first, leaves = self._leaves(tree)
        last = _name(heap, origin + first, limit)
        for node, bound in leaves:
            # Lookups by name need every name above the tree's key on its left, and not above that on its right.
            for name_at, child, cached in self._symbols(node):
                name = _name(heap, origin + name_at, limit)
                room -= len(name) + 1
                # Ascending, so that no name is there twice; cached beyond 1: not a hard link.
                if name <= last or cached > 1 or room < 0 or b"/" in name or name == b".":
                    raise NotClassic
                last = name
                names.append(_text(name))
                children.append(child)
            upper = _name(heap, origin + bound, limit)
            if last > upper:
                raise NotClassic
            last = upper
        return names, children

    def _symbols(self, node: int) -> Iterator[tuple[int, int, int]]:
        """Iterate over a node's entries: name offset, header address, cache type ("Group Symbol Table Nodes")."""
        buffer, position = self._view(node, self._symbols_nbytes)
        signature, version, count = _SYMBOLS.unpack_from(buffer, position)
        if signature != b"SNOD" or version != 1 or not 0 < count <= self._file.max_symbols:
            raise NotClassic
        self._links_left -= count
        if self._links_left < 0:
            raise NotClassic
        position += _SYMBOLS.size
        return _SYMBOL.iter_unpack(buffer[position : position + count * _SYMBOL.size])

    def _leaves(self, tree: int) -> tuple[int, list[_Child]]:
        """List a group's symbol table nodes in the order of their names, after the key on their left."""
        level, first, nodes = self._tree_node(tree)
        low = first
        while level:
            level -= 1
            below: list[_Child] = []
            low = first
            for address, high in nodes:
                found, left, children = self._tree_node(address)
                if found != level or not children or (left, children[-1][1]) != (low, high):
                    raise NotClassic
                below += children
                if len(below) > self._links_left:  # each leads to one link at least
                    raise NotClassic
                low = high
            nodes = below
        return first, nodes

    def _tree_node(self, address: int) -> tuple[int, int, list[_Child]]:
        """Decode level, leftmost key and children of a tree node ("Version 1 B-trees", node type 0)."""
        buffer, position = self._view(address, self._tree_nbytes)
        signature, kind, level, used = _TREE.unpack_from(buffer, position)
        if signature != b"TREE" or kind or level > _MAX_TREE_LEVEL or used > self._file.max_children:
            raise NotClassic
        entries = _tree_entries(used).unpack_from(buffer, position + _TREE.size)
        return level, entries[0], list(zip(entries[1::2], entries[2::2], strict=True))

    def _strings(self, parts: Attribute) -> tuple[str, ...]:
        """Decode a text attribute."""
        width, data = attribute_strings(parts)
        if not width:
            return tuple([self._referenced(*reference) for reference in _REFERENCE.iter_unpack(data)])
        self._text_left -= len(data)
        if self._text_left < 0:
            raise NotClassic
        starts = range(0, len(data), width)
        return tuple([_text(data[start : start + width].rstrip(b"\0")) for start in starts])

    def _referenced(self, nbytes: int, collection: int, index: int) -> str:
        """Read a string from a global heap ("Global Heap ID", after the bytes of the string)."""
        if not nbytes and not collection:  # how an empty string is stored
            return ""
        objects = self._collections.get(collection)
        if objects is None:
            objects = self._collections[collection] = self._heap_objects(collection)
        address, stored = objects.get(index, (0, -1))
        self._text_left -= nbytes
        if stored != nbytes or self._text_left < 0:
            raise NotClassic
        buffer, position = self._view(address, nbytes)
        return _text(buffer[position : position + nbytes])

    def _heap_objects(self, collection: int) -> dict[int, tuple[int, int]]:
        """Locate the objects of a collection, by index, with their bytes ("Global Heap")."""
        buffer, position = self._view(collection, _COLLECTION.size)
        signature, version, nbytes = _COLLECTION.unpack_from(buffer, position)
        if signature != b"GCOL" or version != 1:
            raise NotClassic
        objects: dict[int, tuple[int, int]] = {}
        address, end = collection + _COLLECTION.size, collection + nbytes
        while address + _HEAP_OBJECT.size <= end:
            buffer, position = self._view(address, _HEAP_OBJECT.size)
            index, nbytes = _HEAP_OBJECT.unpack_from(buffer, position)
            address += _HEAP_OBJECT.size
            if not index:  # the free space, which is last
                break
            if index in objects or address + nbytes > end:
                raise NotClassic
            objects[index] = (address, nbytes)
            address += padded(nbytes)
        self._strings_left -= len(objects)
        if self._strings_left < 0:
            raise NotClassic
        return objects

    def _check_overlaps(self) -> None:
        self._spans.sort()
        end = 0
        for start, stop in self._spans:
            if start < end:
                raise NotClassic
            end = stop


@lru_cache(maxsize=64)
def _tree_entries(used: int) -> Struct:
    """Return the form of a tree node's entries: children, with a key before, between and after them."""
    return Struct(f"<{2 * used + 1}Q")


def _name(heap: bytes, start: int, limit: int) -> bytes:
    """Return the NUL-terminated name at a position of a local heap."""
    end = heap.find(b"\0", start, limit)
    if end < 0:
        raise NotClassic
    return heap[start:end]


def _text(encoded: bytes) -> str:
    """Decode UTF-8, of which ASCII is a part."""
    if b"\0" in encoded:  # h5py would cut the text here
        raise NotClassic
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        raise NotClassic from None
