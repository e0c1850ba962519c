"""The seam to h5py: files opened by libhdf5, datasets decoded, and h5py's errors turned into ours.

Threads: libhdf5 is not thread-safe, and h5py serialises all calls on one lock. Threads may share a ``Decoder``; they
take turns.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5s, h5t

from fastassign.catalog import policy
from fastassign.catalog.file import WeightFile
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Changed, FastAssignError, Malformed, Truncated


class Decoder:
    """Decodes datasets that are not plain bytes: chunked, filtered, big-endian, never written.

    Parameters
    ----------
    file : WeightFile
        The open file; the caller closes it.
    base, size : int
        Offset and length of the HDF5 data in the file.
    """

    def __init__(self, file: WeightFile, *, base: int, size: int) -> None:
        self._file = file
        self._context = opened(file, base, size)
        self._handle = self._context.__enter__()

    def __enter__(self) -> Decoder:
        """Return the decoder."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close libhdf5's handle on the file."""
        self._context.__exit__(None, None, None)

    def root_text(self, name: str) -> str | None:
        """Return a text attribute of the root; ``None`` if there is none, or if it is larger than any sane text.

        Raises
        ------
        Malformed
            The attribute can't be decoded.
        """
        with translated(self._file, name):
            if not h5a.exists(self._handle, name.encode()):
                return None
            attribute = h5a.open(self._handle, name.encode())
            values = strings(attribute) if attribute.get_storage_size() <= policy.Limits().max_text_bytes else None
            return values[0] if values and len(values) == 1 else None

    def read_into(self, record: TensorRecord, array: np.ndarray[Any, Any]) -> None:
        """Fill ``array`` (C order, of the record's shape and dtype, native byte order) with a dataset.

        Raises
        ------
        Malformed
            The data can't be decoded.
        """
        with translated(self._file, record.key):
            dataset = h5d.open(self._handle, record.key.encode())
            if tuple(dataset.shape) != record.shape or array.shape != record.shape:
                raise Malformed(
                    f"dataset {record.key} has shape {dataset.shape}, but the index says {record.shape}",
                    file=self._file.path,
                    tensor=record.key,
                )
            dataset.read(h5s.ALL, h5s.ALL, array, mtype=h5t.py_create(array.dtype))


class _Window(io.RawIOBase):
    """The part of a file that is an embedded HDF5 file, as a file object for h5py."""

    def __init__(self, file: WeightFile, base: int, size: int) -> None:
        super().__init__()
        self._file, self._base, self._size, self._position = file, base, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        count = os.preadv(self._file.descriptor, [view], self._base + self._position) if len(view) else 0
        self._position += count
        return count


@contextmanager
def opened(file: WeightFile, base: int, size: int) -> Iterator[Any]:
    """Open HDF5 data in libhdf5; a context.

    Parameters
    ----------
    file : WeightFile
        The open file.
    base, size : int
        Offset and length of the HDF5 data in the file.

    Yields
    ------
    h5py.h5f.FileID
        The file's handle.

    Raises
    ------
    Malformed, Truncated
        The data is not HDF5 or contradicts itself; the text is h5py's.
    Changed
        The file's path leads to another file by now.
    """
    with translated(file):
        if base or not os.fstat(file.descriptor).st_nlink:  # inside an archive, or unpacked from one and unnamed
            owner = h5py.File(_Window(file, base, size), "r")
            handle = owner.id
        else:
            handle = h5f.open(os.fsencode(file.path), h5f.ACC_RDONLY)
            owner = handle
            _check_same_file(file, handle)
    try:
        yield handle
    finally:
        owner.close()


def _check_same_file(file: WeightFile, handle: Any) -> None:
    # libhdf5 opens the path, which may lead to another file than the one that was checked.
    status = os.fstat(handle.get_vfd_handle())
    if (status.st_dev, status.st_ino) != (file.identity.device, file.identity.inode):
        handle.close()
        raise Changed(f"{file.path} was replaced by another file while it was being opened", file=file.path)


@contextmanager
def translated(file: WeightFile, key: str | None = None) -> Iterator[None]:
    """Turn h5py's errors into ``Malformed`` or ``Truncated`` with the same text; a context.

    Parameters
    ----------
    file : WeightFile
        The file that the errors name.
    key : str, optional
        The tensor or attribute that the errors name.
    """
    try:
        yield
    except FastAssignError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, OverflowError, UnicodeDecodeError) as error:
        text = str(error)
        if "truncated file" in text:
            hint = "the file was cut short while it was written or copied: copy or save it again"
            summary = f"the file ends too early: {file.path}"
            raise Truncated(text, file=file.path, hint=hint, summary=summary) from error
        if "file signature not found" in text:
            hint = "an empty or half-written download looks like this: copy or save the file again"
            summary = f"not an HDF5 file: {file.path}"
            raise Malformed(text, file=file.path, tensor=key, hint=hint, summary=summary) from error
        raise Malformed(text, file=file.path, tensor=key) from error


def strings(attribute: Any) -> tuple[str, ...] | None:
    """Return a text attribute as strings, or ``None`` for any other attribute."""
    shape = attribute.shape
    if shape is None or len(shape) > 1:
        return None
    kind = attribute.get_type()
    if not isinstance(kind, h5t.TypeStringID):
        # Keras writes an empty list of names as an empty float64 array.
        return () if shape == (0,) else None
    values = np.empty(shape, dtype=kind.dtype)
    if values.size:
        attribute.read(values, mtype=kind if not kind.is_variable_str() else None)
    return tuple(item.decode() if isinstance(item, bytes) else str(item) for item in values.reshape(-1).tolist())
