"""Object headers, version 1: the messages of one object of a classic HDF5 file.

Section names in the docstrings are those of the *HDF5 File Format Specification*, version 3.0.
Not here: the content of messages (``messages``).
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from fastassign.catalog.classic.messages import NotClassicError, Text, says_nothing, text
from fastassign.catalog.classic.metadata import MAX_PIECE, View

_MESSAGE = Struct("<HHB3x")
_BLOCK = Struct("<QQ")

#: Bytes of the head of a message: type, length, flags.
HEAD_NBYTES = _MESSAGE.size

# Message types ("Data Object Header Messages").
DATASPACE, DATATYPE, LAYOUT, SYMBOL_TABLE = 0x01, 0x03, 0x08, 0x11
_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10
# Each of these appears in an object header at most once.
_ONCE = frozenset((DATASPACE, DATATYPE, LAYOUT, SYMBOL_TABLE))
# The message is constant, or must not be shared. All other flags ask for more than this reader does.
_HARMLESS_FLAGS = 0x01 | 0x04

# A part of an object header: its address, the buffer that holds it, its position in the buffer, its bytes.
Chunk = tuple[int, bytes, int, int]


class Header(NamedTuple):
    """The messages of one object that matter to the index.

    Attributes
    ----------
    messages : dict of int to bytes
        The bodies of dataspace, datatype, layout and symbol table messages, by type.
    layout_address : int
        The address of the layout message's body; 0 without such a message.
    texts : list of Text
        The text attributes.
    """

    messages: dict[int, bytes]
    layout_address: int
    texts: list[Text]


def read_header(view: View, first: Chunk, expected: int) -> Header:
    """Collect the messages of an object that matter to the index.

    Parameters
    ----------
    view : callable
        Reads metadata; see `Metadata.view`.
    first : Chunk
        The first part of the header, behind its prefix.
    expected : int
        The number of messages that the prefix declares.

    Raises
    ------
    NotClassicError
        A message is unknown, or the messages contradict the prefix or each other.
    """
    messages: dict[int, bytes] = {}
    layout_address = 0
    texts: list[Text] = []
    for kind, body, address in _messages(view, first, expected):
        if kind in _ONCE and kind not in messages:
            messages[kind] = body
            if kind == LAYOUT:
                layout_address = address
        elif kind == _ATTRIBUTE:
            attribute = text(body)
            if attribute is not None:
                texts.append(attribute)
        elif not says_nothing(kind, body):
            raise NotClassicError
    return Header(messages, layout_address, texts)


def _messages(view: View, first: Chunk, expected: int) -> Iterator[tuple[int, bytes, int]]:
    """Iterate over types, bodies and addresses of messages ("Version 1 Data Object Header Prefix")."""
    chunks = [first]
    room = MAX_PIECE
    for address, buffer, origin, nbytes in chunks:  # the loop appends continuations
        position, end = origin, origin + nbytes
        while position < end:
            if not expected or end - position < _MESSAGE.size:
                raise NotClassicError
            kind, length, flags = _MESSAGE.unpack_from(buffer, position)
            start = position + _MESSAGE.size
            position = start + length
            if position > end or flags & ~_HARMLESS_FLAGS or length & 7:
                raise NotClassicError
            expected -= 1
            body = buffer[start:position]
            if kind != _CONTINUATION:
                yield kind, body, address + start - origin
                continue
            if length != _BLOCK.size:
                raise NotClassicError
            following, size = _BLOCK.unpack(body)
            room -= size
            if room < 0:
                raise NotClassicError
            chunks.append((following, *view(following, size), size))
    if expected:
        raise NotClassicError
