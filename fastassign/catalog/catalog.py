"""The catalog of a weight file: a mapping of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastassign.catalog import keras_legacy, keras_v3, policy
from fastassign.catalog.file import Identity, WeightFile
from fastassign.catalog.opened import OpenCatalog
from fastassign.catalog.records import Contents, Index, TensorRecord
from fastassign.errors import Changed, FastAssignError
from fastassign.text import printable, table

FileFormat = Literal["legacy", "keras3", "other"]


class CatalogEntry:
    """One tensor of a catalog: its record, and its values on request."""

    __slots__ = ("catalog", "record")

    def __init__(self, catalog: Catalog, record: TensorRecord) -> None:
        self.catalog = catalog
        self.record = record

    def __repr__(self) -> str:
        """Show key, shape and dtype."""
        return f"<CatalogEntry {self.record.key} {self.record.shape} {self.record.dtype}>"

    def read(self) -> np.ndarray[Any, Any]:
        """Read the tensor.

        Returns
        -------
        numpy.ndarray
            A new array of the stored shape and dtype; ``bfloat16`` comes from ``ml_dtypes``.

        Raises
        ------
        Truncated, Changed, Malformed
            The file has changed since it was indexed.
        """
        record = self.record
        dtype = numpy_dtype(record.dtype)
        with self.catalog.open() as file:
            if record.encoding == "raw":
                stored = b"".join(file.read(extent.offset, extent.nbytes) for extent in record.extents)
                array = np.frombuffer(bytearray(stored), dtype=dtype).reshape(record.shape)
            else:
                array = np.empty(record.shape, dtype=dtype)
                file.decode(record, array)
            file.check_unchanged()
        return array


class Catalog(Mapping[str, CatalogEntry]):
    """The tensors of a weight file, by HDF5 path.

    ``fastassign.inspect`` makes it. It holds metadata only. To read tensors, the file is opened again, after a check
    that it is still the file that was indexed.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    identity : Identity
        The state of the file when it was indexed.
    format : {"legacy", "keras3", "other"}
        The layout that the contents have, whatever the file is called.
    index : Index
        Records, groups and text attributes.
    cached : bool
        Whether the index came from the cache.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        index: Index,
        *,
        cached: bool = False,
        inflated: WeightFile | None = None,
    ) -> None:
        self.path = path
        self.identity = identity
        self.index = index
        self.cached = cached
        self._inflated = inflated

    @property
    def contents(self) -> Contents:
        """The objects of the file."""
        return self.index.contents

    @property
    def is_on_disk(self) -> bool:
        """Whether the extents are in the file itself, not in the inflated copy of a compressed archive."""
        return self._inflated is None

    @property
    def format(self) -> FileFormat:
        """The layout that the contents have."""
        if keras_legacy.is_legacy(self.contents):
            return "legacy"
        return "keras3" if keras_v3.is_v3(self.contents) else "other"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together, decoded."""
        return sum(record.nbytes for record in self.contents.records.values())

    def __getitem__(self, key: str) -> CatalogEntry:
        """Return a tensor by its HDF5 path, or by the end of it where that is unambiguous."""
        return CatalogEntry(self, self.record(key))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the HDF5 paths."""
        return iter(self.contents.records)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self.contents.records)

    def __repr__(self) -> str:
        """Summarise in one line."""
        return f"<Catalog {self.path} {self.format} format, {len(self)} tensors, {self.nbytes} bytes>"

    def __str__(self) -> str:
        """List the tensors, one a line."""
        rows = [(r.key, str(r.shape), r.dtype, r.detail or r.encoding) for r in self.contents.records.values()]
        shown = table(("tensor", "shape", "dtype", "stored"), rows, names=(0,))
        refused = [f"{r.key}  refused: {r.message}" for r in self.contents.refusals.values()]
        return "\n".join([printable(repr(self)[1:-1]), shown, *map(printable, refused)])

    def record(self, key: str) -> TensorRecord:
        """Return the record of a tensor.

        Raises
        ------
        KeyError
            No tensor has this path, or more than one ends with it.
        Refused
            The tensor is there, but the policy does not allow it.
        """
        found = self.find(key)
        if found is not None:
            return found
        endings = [name for name in self.contents.records if name.endswith(f"/{key}")]
        if len(endings) == 1:
            return self.contents.records[endings[0]]
        if endings:
            raise KeyError(f"{key!r} is ambiguous: {len(endings)} tensors of {self.path} end with it: {endings[:5]}")
        raise KeyError(f"{key!r} is not a tensor of {self.path}")

    def find(self, key: str) -> TensorRecord | None:
        """Return the record at exactly this path, or ``None``.

        Raises
        ------
        Refused
            The policy does not allow the tensor, or a group or link above it.
        """
        found = self.contents.records.get(key)
        refusal = self.contents.refusal_on(key) if found is None else None
        if refusal is not None:
            raise policy.refused(refusal, self.path)
        return found

    def root_text(self, name: str) -> str | None:
        """Read a text attribute of the root that is not in the index, such as ``model_config``.

        Returns
        -------
        str or None
            ``None`` where the file has none.

        Raises
        ------
        Changed, Malformed
            The file has changed since it was indexed, or is damaged.
        """
        with self.open() as file:
            return file.root_text(name)

    def open(self) -> OpenCatalog:
        """Open the file for reading.

        Raises
        ------
        NotFound, Denied, NotAFile, Unreadable
            The file can't be opened.
        Changed
            The file is not the one that was indexed.
        """
        file = WeightFile(self.path) if self._inflated is None else self._inflated.duplicate()
        if self._inflated is None and file.identity != self.identity:
            file.close()
            raise Changed(
                f"{self.path} is not the file that was indexed: it has been written to or replaced since",
                file=self.path,
                hint="index or plan again",
            )
        return OpenCatalog(file, self.index)

    def name_in(self, error: FastAssignError) -> FastAssignError:
        """Name the file in an error that does not name one, and return the error."""
        return error.at(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return the catalog as JSON-ready data."""
        return {
            "file": str(self.path),
            "format": self.format,
            "bytes": self.nbytes,
            "tensors": [
                {
                    "key": r.key,
                    "shape": list(r.shape),
                    "dtype": r.dtype,
                    "bytes": r.nbytes,
                    "encoding": r.encoding,
                    "detail": r.detail,
                    "extents": [[extent.offset, extent.nbytes] for extent in r.extents],
                }
                for r in self.contents.records.values()
            ],
            "refused": [
                {"key": r.key, "rule": r.rule, "message": r.message, "option": r.option}
                for r in self.contents.refusals.values()
            ],
        }


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype that holds a record's values, in native byte order."""
    if dtype == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    native: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    return native
