"""The contents of a file as plain data: tensors, groups, text attributes and refusals.

Only the index (``classic`` or ``hdf5_index``) makes records, and they are valid by construction: a record has a known
dtype, a finite shape, and extents inside the file as it was opened.

Not here: reading tensor data (``fastassign.streaming``), and assigning tensors to variables (``fastassign.matching``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

# How the bytes of a tensor are stored. "raw": the extents, one after the other, are the array itself, in C order and
# little-endian. "h5py": the dataset is chunked, filtered, big-endian or never written, and h5py has to decode it.
Encoding = Literal["raw", "h5py"]

# Item sizes of the dtypes that numpy does not know by name alone.
_OPAQUE_ITEMSIZE = {"bfloat16": 2, "|V1": 1, "|V2": 2}


def itemsize_of(dtype: str) -> int:
    """Return the bytes of one element of a record's dtype (``"<f4"`` -> 4, ``"bfloat16"`` -> 2)."""
    known = _OPAQUE_ITEMSIZE.get(dtype)
    return int(dtype[2:]) if known is None else known


class Extent(NamedTuple):
    """A run of bytes in the file; ``offset`` counts from the first byte of the file itself."""

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
        numpy's ``dtype.str`` (``"<f4"``, ``">f8"``, ``"|b1"``), ``"bfloat16"`` for the two opaque bytes that Keras
        marks as such, or ``"|V1"``/``"|V2"`` for unmarked opaque bytes.
    encoding : {"raw", "h5py"}
        Whether the extents are the array itself, or h5py has to decode it.
    extents : tuple of Extent
        The places of the bytes in the file; empty for the encoding ``"h5py"`` and for tensors without elements.
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
        if len(self.extents) == 1:  # raw, as most are: the index has done the sum
            return self.extents[0].nbytes
        return math.prod(self.shape) * itemsize_of(self.dtype)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A path in the file that the policy does not allow; the error is raised when a load needs the path.

    Attributes
    ----------
    key : str
        The path.
    rule : str
        The rule that it breaks; see ``fastassign.catalog.policy``.
    message : str
        The text of the error.
    option : str or None
        The option that would allow the path; ``None`` if no option does.
    """

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
        The names in each group, by the group's path (``""`` is the root), whatever kind of object they lead to.
    refusals : mapping of str to Refusal
        Paths that may not be followed or read, by key.
    texts : mapping of (str, str) to tuple of str
        The text attributes that the Keras layouts use, by (group path, attribute name). A scalar attribute is a tuple
        of one string.
    """

    records: Mapping[str, TensorRecord] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    refusals: Mapping[str, Refusal] = field(default_factory=dict)
    texts: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def refusal_on(self, key: str) -> Refusal | None:
        """Return the refusal of a path itself, or of any group above it."""
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
    """The contents of a weight file, and the place of its HDF5 data in the file.

    Attributes
    ----------
    base, size : int
        First byte and length of the HDF5 data; ``0`` and the file's size unless the data is in an archive.
    contents : Contents
        The objects of the HDF5 data.
    """

    base: int
    size: int
    contents: Contents
