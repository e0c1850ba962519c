"""What is in a file, as plain data: tensors, groups, text attributes and refusals.

Everything here is made by the index (``hdf5`` or ``classic``) and is valid by construction: a record that
exists has a known dtype, a finite shape, and extents that lie inside the file as it was opened.

Not here: reading tensor data (``fastassign.streaming``) and deciding what belongs to which variable
(``fastassign.matching``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

# How the bytes of a tensor are stored. "raw": the extents, one after the other, are the array in C order,
# little-endian, nothing else to do. "h5py": chunked, filtered, big-endian or never written; h5py reads it.
Encoding = Literal["raw", "h5py"]

# Item sizes of the dtypes that numpy does not know by name alone.
_OPAQUE_ITEMSIZE = {"bfloat16": 2, "|V1": 1, "|V2": 2}


def itemsize_of(dtype: str) -> int:
    """Return the bytes of one element of a record's dtype (``"<f4"`` -> 4, ``"bfloat16"`` -> 2)."""
    known = _OPAQUE_ITEMSIZE.get(dtype)
    return int(dtype[2:]) if known is None else known


class Extent(NamedTuple):
    """A run of bytes in the file: ``offset`` counts from the first byte of the file itself."""

    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One dataset of the file.

    Attributes
    ----------
    key : str
        HDF5 path without the leading slash, below the root of the file.
    shape : tuple of int
        The declared shape.
    dtype : str
        numpy's ``dtype.str`` (``"<f4"``, ``">f8"``, ``"|b1"``), ``"bfloat16"`` for Keras' marked two-byte
        opaque form, or ``"|V1"``/``"|V2"`` for unmarked opaque bytes.
    encoding : {"raw", "h5py"}
        Whether the extents are the array itself, or h5py has to decode it.
    extents : tuple of Extent
        Where the bytes stand; empty for the encoding ``"h5py"`` and for tensors without elements.
    detail : str
        Why the encoding is ``"h5py"`` (``"chunked, gzip"``); empty for ``"raw"``.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    encoding: Encoding = "raw"
    extents: tuple[Extent, ...] = ()
    detail: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded array."""
        if len(self.extents) == 1:  # raw, and by far the most: the index has done the sum
            return self.extents[0].nbytes
        return math.prod(self.shape) * itemsize_of(self.dtype)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something in the file that the policy does not allow, raised when a load needs it."""

    key: str
    rule: str
    message: str
    option: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """The objects of one HDF5 file.

    Attributes
    ----------
    records : mapping of str to TensorRecord
        The datasets that a load may use, by key.
    groups : mapping of str to tuple of str
        The names in each group, by the group's path (``""`` is the root), whatever they lead to.
    refusals : mapping of str to Refusal
        Paths that may not be followed or read, by key.
    texts : mapping of (str, str) to tuple of str
        The text attributes that the Keras layouts use, by (group path, attribute name). A scalar attribute is
        a tuple of one.
    """

    records: Mapping[str, TensorRecord] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    texts: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def refusal_on(self, key: str) -> Refusal | None:
        """Return the refusal that stands on the way to a path: on itself or on any group above it."""
        if not self.refusals:
            return None
        path = key
        while path:
            if path in self.refusals:
                return self.refusals[path]
            path = path.rpartition("/")[0]
        return None


@dataclass(frozen=True, slots=True)
class Index:
    """The contents of a weight file, and where in the file its HDF5 data stands.

    Attributes
    ----------
    base, size : int
        First byte and length of the HDF5 data; ``0`` and the file's size unless it stands in an archive.
    contents : Contents
        What was found.
    """

    base: int
    size: int
    contents: Contents
