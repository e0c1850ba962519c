"""Opening a weight file: which layout it has and what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastassign.catalog import index_cache, keras_legacy, keras_v3, policy
from fastassign.catalog.classic import index as classic
from fastassign.catalog.file import Identity, WeightFile
from fastassign.catalog.policy import Limits
from fastassign.catalog.records import Contents, Index, TensorRecord
from fastassign.errors import Changed
from fastassign.text import printable, table

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

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
            The file is not what it was when it was indexed.
        """
        record = self.record
        dtype = numpy_dtype(record.dtype)
        with self.catalog.open() as file:
            if record.encoding == "raw":
                stored = b"".join(file.read(extent.offset, extent.nbytes) for extent in record.extents)
                array = np.frombuffer(bytearray(stored), dtype=dtype).reshape(record.shape)
            else:
                from fastassign.catalog import hdf5  # h5py and zipfile take 20 ms to import: most loads need neither

                array = np.empty(record.shape, dtype=dtype)
                with hdf5.Decoder(file, base=self.catalog.index.base, size=self.catalog.index.size) as decoder:
                    decoder.read_into(record, array)
            file.check_unchanged()
        return array


class Catalog(Mapping[str, CatalogEntry]):
    """The tensors of a weight file, by HDF5 path.

    Made by ``fastassign.inspect``. It holds metadata only; the file is opened again, and compared with what was
    indexed, when tensors are read.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    identity : Identity
        The state of the file that was indexed.
    format : {"legacy", "keras3", "other"}
        What the contents look like, whatever the file is called.
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
        """Whether the extents are those of the file itself, not of what a compressed archive inflated to."""
        return self._inflated is None

    @property
    def format(self) -> FileFormat:
        """What the contents look like."""
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
            No tensor, or more than one, is called that.
        Refused
            The tensor is there, but the policy does not allow it.
        """
        found = self.find(key)
        if found is not None:
            return found
        endings = [name for name in self.contents.records if name.endswith(f"/{key}")]
        if len(endings) == 1:
            return self.contents.records[endings[0]]
        reason = f"{len(endings)} tensors end like that: {endings[:5]}" if endings else "no such tensor"
        raise KeyError(f"{key!r}: {reason} in {self.path}")

    def find(self, key: str) -> TensorRecord | None:
        """Return the record at exactly this path, or ``None``.

        Raises
        ------
        Refused
            Something on the way to it is not allowed.
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
            The file is not what it was when it was indexed, or damaged.
        """
        from fastassign.catalog import hdf5

        with self.open() as file, hdf5.Decoder(file, base=self.index.base, size=self.index.size) as decoder:
            return decoder.root_text(name)

    def open(self) -> WeightFile:
        """Open the file for reading.

        Raises
        ------
        Changed
            The file is not the one that was indexed.
        """
        file = WeightFile(self.path) if self._inflated is None else self._inflated.duplicate()
        if self._inflated is None and file.identity != self.identity:
            file.close()
            raise Changed(
                f"{self.path} is not the file that was indexed: it was written to or replaced since",
                file=self.path,
                hint="index or plan again",
            )
        return file

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


def open_catalog(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    allow: frozenset[str] = frozenset(),
    use_cache: bool = True,
    max_inflated_bytes: int = 8 << 30,
) -> Catalog:
    """Index a weight file.

    Parameters
    ----------
    path : str or os.PathLike
        An HDF5 file, or a ``.keras`` archive with one inside.
    limits : Limits, optional
        Bounds on the index.
    allow : frozenset of str
        Rules of the policy to switch off.
    use_cache : bool
        Whether the index may come from the cache, and be kept there.
    max_inflated_bytes : int
        The most that compressed weights inside an archive may inflate to.

    Raises
    ------
    Unreadable, Malformed, Truncated, Refused
        See ``fastassign.errors``.
    """
    limits = limits or Limits()
    # A cached index was made under the default policy and limits.
    use_cache = use_cache and not allow and limits == Limits()
    with WeightFile(path) as file:
        index = index_cache.load(file.identity) if use_cache else None
        if index is not None:
            return Catalog(file.path, file.identity, index, cached=True)
        span = span_of(file)
        if span is None:
            return _inflated(file, limits, allow, max_inflated_bytes)
        index = _index(file, span, limits, allow)
        file.check_unchanged()
        if use_cache:
            index_cache.store(file.identity, index)
        return Catalog(file.path, file.identity, index)


def span_of(file: WeightFile) -> tuple[int, int] | None:
    """Return first byte and length of the HDF5 data in a file; ``None`` where an archive holds it compressed."""
    if not is_archive(file):
        return 0, file.size
    from fastassign.catalog import archive

    return archive.locate(file)


def is_archive(file: WeightFile) -> bool:
    """Whether the weights stand in a zip archive: as in Keras, never in a file that is called ``.h5``."""
    if file.path.name.endswith((".h5", ".hdf5")):
        return False
    head = file.read_some(0, len(_HDF5_SIGNATURE))
    if head.startswith(b"PK\x03\x04"):
        return True
    if head == _HDF5_SIGNATURE or not file.path.name.endswith(".keras"):
        return False
    from fastassign.catalog import archive

    return archive.is_archive(file)  # something stands before the archive, which zip allows


def _inflated(file: WeightFile, limits: Limits, allow: frozenset[str], max_bytes: int) -> Catalog:
    from fastassign.catalog import archive

    inner = archive.inflate(file, max_bytes=max_bytes)
    try:
        index = _index(inner, (0, inner.size), limits, allow)
    except BaseException:
        inner.close()
        raise
    return Catalog(file.path, file.identity, index, inflated=inner)


def _index(file: WeightFile, span: tuple[int, int], limits: Limits, allow: frozenset[str]) -> Index:
    base, size = span
    contents = classic.read_contents(file.read_some, base=base, size=size, limits=limits)
    if contents is None:
        from fastassign.catalog import hdf5

        contents = hdf5.read_contents(file, base=base, size=size, limits=limits, allow=allow)
    return Index(base=base, size=size, contents=contents)
