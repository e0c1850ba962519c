"""The global heap: the variable-length strings of a classic HDF5 file.

Section names in the docstrings are those of the *HDF5 File Format Specification*, version 3.0.
"""

from __future__ import annotations

from struct import Struct

from fastassign.catalog.classic.messages import NotClassicError
from fastassign.catalog.classic.metadata import Metadata

# A larger object in a global heap is a model's configuration, which the index does not need.
_MAX_STRING = 1 << 16

_COLLECTION = Struct("<4sIQ")
_HEAP_OBJECT = Struct("<H6xQ")


class GlobalHeap:
    """Reads variable-length strings.

    Parameters
    ----------
    metadata : Metadata
        The metadata of the file.
    max_objects, max_bytes : int
        The most objects and bytes in all collections that are read. Objects too large for a name do not count.
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
            The object does not exist or is too large for a name, or the collection holds more than allowed.
        """
        if not nbytes and not collection:  # an empty string is stored like this
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
