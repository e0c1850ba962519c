"""The header messages of the classic HDF5 structure, decoded as far as a Keras weight file needs them.

Pure functions from the bytes of one message to plain values, so that equal messages (most datasets of a model
share theirs) are decoded once. What h5py would write in the same way every time is recognised by its exact
bytes; whatever else a message may hold raises `NotClassic`.

Section names in the docstrings are those of the *HDF5 File Format Specification*, version 3.0.
Not here: finding the messages in the file (``classic``).
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from struct import Struct, pack
from typing import NamedTuple

# HDF5's own limit (H5S_MAX_RANK); it also bounds what `dataspace` keeps in its cache.
_MAX_RANK = 32

_DIMENSIONS = tuple(Struct(f"<{rank}Q") for rank in range(_MAX_RANK + 1))
_CONTIGUOUS = Struct("<BBQQ")
_COMPACT = Struct("<BBH")
_ATTRIBUTE = Struct("<BBHHH")
_STRING = Struct("<B3sI")

# Terminated or padded by NUL (h5py reads both alike), ASCII or UTF-8; padding by spaces is h5py's to undo.
_FIXED_BITS = frozenset(bytes((padding | charset << 4, 0, 0)) for padding in (0, 1) for charset in (0, 1))
# A sequence that is a string, terminated by NUL, ASCII or UTF-8.
_VARIABLE_BITS = frozenset((b"\x01\x00\x00", b"\x01\x01\x00"))
# A variable-length string is described by 8 + 12 bytes; the bound is for the cache.
_MAX_STRING_TYPE = 64

#: Bytes of a variable-length string in the attribute: its length and a global heap ID.
REFERENCE_NBYTES = 16


class NotClassic(Exception):  # noqa: N818 - an answer, not an error: h5py takes over
    """The file holds something outside of the classic subset, or contradicts itself."""


def padded(nbytes: int) -> int:
    """Return a length rounded up to the eight bytes on which version 1 of the format aligns its parts."""
    return (nbytes + 7) & ~7


def _fixed_point(size: int, *, signed: bool) -> bytes:
    return pack("<B3BIHH", 0x10, 8 * signed, 0, 0, size, 0, 8 * size)


def _floating_point(size: int, exponent: tuple[int, int], mantissa: int, bias: int) -> bytes:
    # 0x20: little-endian, the leading mantissa bit is implied; the sign is the topmost bit.
    head = pack("<B3BI", 0x11, 0x20, 8 * size - 1, 0, size)
    return head + pack("<HHBBBBI", 0, 8 * size, *exponent, 0, mantissa, bias)


def _boolean() -> bytes:
    # h5py stores numpy's bool as an enumeration over int8 with exactly these two members.
    head = pack("<B3BI", 0x18, 2, 0, 0, 1)
    return head + _fixed_point(1, signed=True) + b"FALSE\0\0\0" + b"TRUE\0\0\0\0" + bytes((0, 1))


def _known_datatypes() -> dict[bytes, tuple[str, int]]:
    plain = {f"{kind}{size}": _fixed_point(size, signed=kind == "i") for kind in "iu" for size in (1, 2, 4, 8)}
    plain |= {
        "f2": _floating_point(2, (10, 5), 10, 15),
        "f4": _floating_point(4, (23, 8), 23, 127),
        "f8": _floating_point(8, (52, 11), 52, 1023),
        "b1": _boolean(),
        "V1": pack("<B3BI", 0x15, 0, 0, 0, 1),
        "V2": pack("<B3BI", 0x15, 0, 0, 0, 2),
    }
    known = {}
    for name, body in plain.items():
        size = int(name[1:])
        known[body.ljust(padded(len(body)), b"\0")] = (("|" if size == 1 or name[0] == "V" else "<") + name, size)
    return known


#: Datatype messages of the accepted datasets, padded as they stand in a version-1 object header, with numpy's
#: ``dtype.str`` and the bytes of an element ("The Datatype Message", version 1).
DATATYPES = _known_datatypes()

_FLOAT64 = next(body for body, (dtype, _) in DATATYPES.items() if dtype == "<f8")


@lru_cache(maxsize=4096)
def dataspace(body: bytes) -> tuple[tuple[int, ...], int]:
    """Decode a dataspace message ("The Dataspace Message", version 1).

    Returns
    -------
    shape : tuple of int
        The current dimensions; empty for a scalar.
    count : int
        The number of elements.

    Raises
    ------
    NotClassic
        For any other version, a permutation, too high a rank, or a message of the wrong length.
    """
    if len(body) < 8 or body[0] != 1:
        raise NotClassic
    rank, flags = body[1], body[2]
    if rank > _MAX_RANK or flags > 1:
        raise NotClassic
    # Flag 1: the maximum dimensions follow; they say nothing about the data that is there.
    if len(body) != 8 + 8 * rank * (1 + flags):
        raise NotClassic
    shape = _DIMENSIONS[rank].unpack_from(body, 8)
    if any(dimension > sys.maxsize for dimension in shape):
        raise NotClassic
    return shape, math.prod(shape)


def layout(body: bytes) -> tuple[bool, int, int]:
    """Decode a layout message ("The Data Layout Message", version 3).

    Returns
    -------
    contiguous : bool
        Whether the data stands apart from the message.
    address : int
        The address of contiguous data; of compact data, its offset within the message.
    nbytes : int
        The bytes of storage.

    Raises
    ------
    NotClassic
        For any other version or class, or a message that is too short.
    """
    if len(body) >= _CONTIGUOUS.size:
        version, kind, address, nbytes = _CONTIGUOUS.unpack_from(body)
        if (version, kind) == (3, 1):
            return True, address, nbytes
    if len(body) >= _COMPACT.size:
        version, kind, nbytes = _COMPACT.unpack_from(body)
        if (version, kind) == (3, 0) and _COMPACT.size + nbytes <= len(body):
            return False, _COMPACT.size, nbytes
    raise NotClassic


class Text(NamedTuple):
    """A text attribute, its strings still encoded.

    Attributes
    ----------
    name : str
        The attribute's name.
    width : int
        The bytes of one fixed-length string, or 0: `data` is references of 16 bytes into a global heap.
    data : bytes
        All strings or references, one after the other.
    """

    name: str
    width: int
    data: bytes


def text(body: bytes) -> Text | None:
    """Decode an attribute message if it has one of the names that matter ("The Attribute Message").

    Returns
    -------
    Text or None
        None: the attribute has another name, and was not looked at further.

    Raises
    ------
    NotClassic
        For a message version other than 1 and 3, shared parts, a datatype other than string, more than one
        dimension, or a message that is too short.
    """
    data_at = _attribute_parts(body[: _ATTRIBUTE.size])[-1]
    if data_at > len(body):
        raise NotClassic
    known = _text_form(body[:data_at])
    if known is None:
        return None
    name, width, nbytes = known
    data = body[data_at : data_at + nbytes]
    if len(data) != nbytes:
        raise NotClassic
    return Text(name, width, data)


# Attributes of a file differ in few ways: the same names, lists of a few lengths.
@lru_cache(maxsize=256)
def _attribute_parts(head: bytes) -> tuple[int, int, int, int, int, int]:
    """Return where name, datatype and dataspace of an attribute begin and end, and where its data begins."""
    if len(head) != _ATTRIBUTE.size:
        raise NotClassic
    version, flags, name_nbytes, type_nbytes, space_nbytes = _ATTRIBUTE.unpack(head)
    if flags:  # of version 3: a shared datatype or dataspace
        raise NotClassic
