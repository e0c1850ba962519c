"""A weight file that was indexed, and is open for reading."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastassign.catalog.file import WeightFile
from fastassign.catalog.records import Index

if TYPE_CHECKING:
    import numpy as np

    from fastassign.catalog.hdf5 import Decoder
    from fastassign.catalog.records import TensorRecord


class OpenCatalog:
    """The file of a catalog; see ``fastassign.catalog.origin.OpenOrigin``.

    Parameters
    ----------
    file : WeightFile
        The open file; it becomes this object's.
    index : Index
        The index of the file: where HDF5 begins in it, and how long it is.
    """

    def __init__(self, file: WeightFile, index: Index) -> None:
        self._file, self._index = file, index
        # h5py reads in one thread at a time, and opening the file for it takes 1 ms: only where it is needed.
        self._decoder: Decoder | None = None
        self._decoding = threading.Lock()

    @property
    def descriptor(self) -> int:
        """The file descriptor."""
        return self._file.descriptor

    def __enter__(self) -> OpenCatalog:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._decoder is not None:
            self._decoder.__exit__(None, None, None)
            self._decoder = None
        self._file.close()

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Read through the page cache; see ``OpenOrigin``."""
        return self._file.preadv(buffers, offset)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``; see ``WeightFile.read``."""
        return self._file.read(offset, nbytes)

    def decode(self, record: TensorRecord, array: np.ndarray[Any, Any]) -> None:
        """Read a tensor by h5py; see ``OpenOrigin``."""
        with self._decoding:
            self._opened_by_h5py().read_into(record, array)

    def root_text(self, name: str) -> str | None:
        """Return a text attribute of the root; ``None`` where the file has none."""
        with self._decoding:
            return self._opened_by_h5py().root_text(name)

    def check_unchanged(self) -> None:
        """Raise ``Changed`` or ``Truncated`` if the file was written to since it was opened."""
        self._file.check_unchanged()

    def _opened_by_h5py(self) -> Decoder:
        if self._decoder is None:
            from fastassign.catalog.hdf5 import Decoder  # h5py takes 20 ms to import

            self._decoder = Decoder(self._file, base=self._index.base, size=self._index.size)
        return self._decoder
