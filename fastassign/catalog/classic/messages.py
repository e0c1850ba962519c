"""The header messages of the classic HDF5 structure, decoded as far as a Keras weight file needs them.

The functions map the bytes of one message to plain values, so that equal messages are decoded once: most datasets of a
model share theirs. Messages that h5py always writes in the same way are recognised by their exact bytes. Any other
content raises `NotClassicError`.

Section names in the docstrings are those of the *HDF5 File Format Specification*, version 3.0.
Not here: finding the messages in the file (``headers``).
"""

from __future__ import annotations

import math
import re
import sys
from functools import lru_cache
from struct import Struct, pack
from typing import cast

# HDF5's own limit (H5S_MAX_RANK). It also bounds the size of the entries in the cache of `dataspace`.
_MAX_RANK = 32

_DIMENSIONS = tuple(Struct(f"<{rank}Q") for rank in range(_MAX_RANK + 1))
_CONTIGUOUS = Struct("<BBQQ")
_COMPACT = Struct("<BBH")
_FILL = Struct("<BBBBI")
_ATTRIBUTE = Struct("<BBHHH")
_STRING = Struct("<4sI")

_NIL, _OLD_FILL, _FILL_VALUE, _MODIFIED = 0x00, 0x04, 0x05, 0x12

#: Bytes of a variable-length string in an attribute: its length and a global heap ID.
REFERENCE_NBYTES = 16

# The attributes of which the Keras layouts consist; long lists are split into layer_names0, layer_names1, ...
_is_text = re.compile(r"(?:layer_names|weight_names)[0-9]*|keras_version|backend|name|dtype").fullmatch
#: Keras marks a dataset of two-byte opaque elements by this attribute; on a group it has no meaning.
MARK = "dtype"


class NotClassicError(Exception):
    """The file has a structure outside of the classic subset, or contradicts itself."""


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


#: Datatype messages of the accepted datasets, padded as in a version-1 object header, with numpy's
#: ``dtype.str`` and the bytes of an element ("The Datatype Message", version 1).
DATATYPES = _known_datatypes()

# A sequence of characters that is a string, in ASCII or UTF-8, terminated by NUL.
_VARIABLE_STRINGS = frozenset(
    (pack("<B3BI", 0x19, 1, charset, 0, REFERENCE_NBYTES) + _fixed_point(1, signed=False)).ljust(24, b"\0")
    for charset in (0, 1)
)
# Version 1 of the class, ASCII or UTF-8, terminated or padded by NUL; h5py reads both in the same way.
_FIXED_STRINGS = frozenset(bytes((0x13, padding | charset << 4, 0, 0)) for padding in (0, 1) for charset in (0, 1))


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
    NotClassicError
        For any other version, a permutation, too high a rank, or a message of the wrong length.
    """
    if len(body) < 8 or body[0] != 1:
        raise NotClassicError
    rank, flags = body[1], body[2]
    if rank > _MAX_RANK or flags > 1:
        raise NotClassicError
    # Flag 1: the maximum dimensions follow; only chunked datasets can have larger ones.
    if len(body) != 8 + 8 * rank * (1 + flags) or (flags and body[8 : 8 + 8 * rank] != body[8 + 8 * rank :]):
        raise NotClassicError
    shape = _DIMENSIONS[rank].unpack_from(body, 8)
    if any(dimension > sys.maxsize for dimension in shape):
        raise NotClassicError
    return shape, math.prod(shape)


def layout(body: bytes) -> tuple[bool, int, int]:
    """Decode a layout message ("The Data Layout Message", version 3).

    Returns
    -------
    contiguous : bool
        Whether the data is outside of the message.
    address : int
        The address of contiguous data; of compact data, its offset within the message.
    nbytes : int
        The bytes of storage.

    Raises
    ------
    NotClassicError
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
    raise NotClassicError


#: A text attribute, its strings still encoded: its name; the bytes of one fixed-length string, or 0 where the
#: data is references into a global heap; the strings or references, one after the other.
Text = tuple[str, int, bytes]


def says_nothing(kind: int, body: bytes) -> bool:
    """Whether a message is well-formed and does not change the content of a written dataset.

    Such messages are padding, fill values ("The Data Storage - Fill Value Message", both kinds) and the time of the
    last change.
    """
    if kind == _NIL:
        return True
    if kind == _FILL_VALUE and len(body) >= _FILL.size:
        version, allocation, writing, defined, nbytes = _FILL.unpack_from(body)
        known = version == 2 and 1 <= allocation <= 3 and writing <= 2 and defined <= 1
        return known and (not defined or _FILL.size + nbytes <= len(body))
    if kind == _OLD_FILL and len(body) >= 4:
        return 4 + int.from_bytes(body[:4], "little") <= len(body)
    return kind == _MODIFIED and len(body) >= 8 and body[0] == 1


def text(body: bytes) -> Text | None:
    """Decode an attribute message if it has one of the names that matter ("The Attribute Message", version 1).

    Returns
    -------
    Text or None
        ``None`` where the attribute has another name.

    Raises
    ------
    NotClassicError
        For any other version, a datatype that is neither a string nor an accepted dataset's, a message that is
        too short, or one of the names with anything but a string or a one-dimensional array of strings.
    """
    data_at = _data_at(body[: _ATTRIBUTE.size])
    name, width, nbytes = _text_form(body[:data_at], data_at)
    if data_at + nbytes > len(body):
        raise NotClassicError
    return None if name is None else (name, width, body[data_at : data_at + nbytes])


@lru_cache(maxsize=128)
def _data_at(sizes: bytes) -> int:
    """Return where the data of an attribute begins, from the first eight bytes of its message."""
    if len(sizes) != _ATTRIBUTE.size:
        raise NotClassicError
    version, reserved, *parts = _ATTRIBUTE.unpack(sizes)
    if version != 1 or reserved:
        raise NotClassicError
    return _ATTRIBUTE.size + sum(map(padded, parts))


# The attributes of a file differ in few ways: names and lengths of lists recur. A head is below 64 KiB.
@lru_cache(maxsize=128)
def _text_form(head: bytes, nbytes: int) -> tuple[str | None, int, int]:
    """Decode the part before the data: a name that matters, the bytes of one string, the bytes of the data."""
    if len(head) != nbytes:
        raise NotClassicError
    _, _, name_nbytes, type_nbytes, space_nbytes = _ATTRIBUTE.unpack_from(head)
    type_at = _ATTRIBUTE.size + padded(name_nbytes)
    space_at = type_at + padded(type_nbytes)
    if head.find(b"\0", _ATTRIBUTE.size) != _ATTRIBUTE.size + name_nbytes - 1:
        raise NotClassicError
    try:
        name = head[_ATTRIBUTE.size : _ATTRIBUTE.size + name_nbytes - 1].decode()
    except UnicodeDecodeError:
        raise NotClassicError from None
    shape, count = dataspace(head[space_at : space_at + space_nbytes])
    datatype = head[type_at:space_at]
    known = DATATYPES.get(datatype)
    if known is not None:
        dtype, itemsize = known
        if _is_text(name):
            if dtype == "<f8" and shape == (0,):
                return name, 0, 0  # h5py writes an empty list like this
            raise NotClassicError
        return None, 0, count * itemsize
    width = _string_width(datatype)
    nbytes = count * (width or REFERENCE_NBYTES)
    if not _is_text(name):
        return None, 0, nbytes
    if len(shape) > 1:
        raise NotClassicError
    return name, width, nbytes


def _string_width(datatype: bytes) -> int:
    """Return the bytes of a fixed-length string, or 0 for a variable-length one."""
    if datatype in _VARIABLE_STRINGS:
        return 0
    if len(datatype) == _STRING.size:
        kind, width = cast("tuple[bytes, int]", _STRING.unpack(datatype))
        if kind in _FIXED_STRINGS and width:
            return width
    raise NotClassicError


def decoded(encoded: list[bytes]) -> tuple[str, ...]:
    """Decode strings in UTF-8, of which ASCII is a part.

    Raises
    ------
    NotClassicError
        A string is not UTF-8, or holds a NUL, at which h5py would cut it.
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
