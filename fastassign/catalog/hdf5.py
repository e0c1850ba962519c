"""The one seam to h5py: whatever HDF5 can express is indexed, and decoded, here.

``classic`` reads the plain structure that Keras writes, faster; everything else, and every doubt, comes here.
h5py's low-level API is used because the high-level one costs twice as much per object.

Threads: libhdf5 is not thread-safe and h5py serialises all calls on one lock; ``Decoder`` may be shared by
threads, they take turns.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5l, h5o, h5p, h5s, h5t, h5z

from fastassign.catalog import policy
from fastassign.catalog.file import WeightFile
from fastassign.catalog.records import Contents, Extent, Refusal, TensorRecord
from fastassign.errors import Changed, FastAssignError, Malformed, Refused, Truncated

# The attributes that the Keras layouts are made of; long lists are split into layer_names0, layer_names1, ...
_TEXT_ATTRIBUTE = re.compile(r"(?:layer_names|weight_names)\d*|keras_version|backend|name")

_NUMERIC_KINDS = frozenset("iufbc")
_FILTER_NAMES = {h5z.FILTER_DEFLATE: "gzip", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}


def read_contents(file: WeightFile, *, base: int, size: int, limits: policy.Limits, allow: frozenset[str]) -> Contents:
    """Index an HDF5 file, or one that stands inside another, through libhdf5.

    Parameters
    ----------
    file : WeightFile
        The open file.
    base, size : int
        Where the HDF5 data begins in the file and how many bytes it has; ``0`` and the file's size for a plain
        HDF5 file.
    limits : Limits
        Bounds on the whole file.
    allow : frozenset of str
        Rules of the policy that are switched off.

    Raises
    ------
    Malformed, Truncated
        The file is not HDF5 or contradicts itself; the text is h5py's.
    Refused
        A limit on the whole file is exceeded.
    """
    with _opened(file, base, size) as handle, _translated(file):
        # The user block, if any, shifts every address; h5d.get_offset already includes it.
        return _Walk(file, base, size, limits, allow).run(handle)


class Decoder:
    """Reads datasets that are not plain bytes: chunked, filtered, big-endian, never written.

    Parameters
    ----------
    file : WeightFile
        The open file; it stays the caller's.
    base, size : int
        Where the HDF5 data stands in it.
    """

    def __init__(self, file: WeightFile, *, base: int, size: int) -> None:
        self._file = file
        self._context = _opened(file, base, size)
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
        """Return a text attribute of the root; ``None`` where there is none, or one beyond all reason.

        Raises
        ------
        Malformed
            It can't be decoded.
        """
        with _translated(self._file, name):
            if not h5a.exists(self._handle, name.encode()):
                return None
            attribute = h5a.open(self._handle, name.encode())
            values = _strings(attribute) if attribute.get_storage_size() <= policy.Limits().max_text_bytes else None
            return values[0] if values and len(values) == 1 else None

    def read_into(self, record: TensorRecord, array: np.ndarray[Any, Any]) -> None:
        """Fill ``array`` (C order, of the record's shape and dtype, native byte order) with a dataset.

        Raises
        ------
        Malformed
            The data can't be decoded.
        """
        with _translated(self._file, record.key):
            dataset = h5d.open(self._handle, record.key.encode())
            if tuple(dataset.shape) != record.shape or array.shape != record.shape:
                raise Malformed(
                    f"dataset {record.key} has shape {dataset.shape}, the index says {record.shape}",
                    file=self._file.path,
                    tensor=record.key,
                )
            dataset.read(h5s.ALL, h5s.ALL, array, mtype=h5t.py_create(array.dtype))


class _Window(io.RawIOBase):
    """The part of a file that holds an embedded HDF5 file, as h5py's file-object driver wants it."""

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
def _opened(file: WeightFile, base: int, size: int) -> Iterator[Any]:
    with _translated(file):
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
    # libhdf5 opens by path: the path may lead to another file by now than the one that was checked.
    status = os.fstat(handle.get_vfd_handle())
    if (status.st_dev, status.st_ino) != (file.identity.device, file.identity.inode):
        handle.close()
        raise Changed(f"{file.path} was replaced by another file while it was being opened", file=file.path)


@contextmanager
def _translated(file: WeightFile, key: str | None = None) -> Iterator[None]:
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


class _Walk:
    """One pass over all groups of a file."""

    def __init__(self, file: WeightFile, base: int, size: int, limits: policy.Limits, allow: frozenset[str]) -> None:
        self._file, self._base, self._end = file, base, base + size
        self._limits, self._allow = limits, allow
        self._records: dict[str, TensorRecord] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._refusals: dict[str, Refusal] = {}
        self._texts: dict[tuple[str, str], tuple[str, ...]] = {}
        self._dtypes: list[tuple[Any, str, bool]] = []
        # Groups as (file, address): all that were met by hard links, and those from the root to the current one.
        self._seen: set[tuple[int, int]] = set()
        self._way: list[tuple[int, int]] = []
        self._links = self._text_bytes = 0
        self._access = h5p.create(h5p.LINK_ACCESS)
        if "external-link" not in allow:
            # A soft link that is allowed may lead to an external one, which libhdf5 would follow by itself.
            self._access.set_nlinks(1)

    def run(self, handle: Any) -> Contents:
        self._enter(h5g.open(handle, b"/"), "", h5l.TYPE_HARD)
        return Contents(records=self._records, groups=self._groups, refusals=self._refusals, texts=self._texts)

    def _enter(self, group: Any, path: str, way: int) -> None:
        """Walk a group, unless it was met before; ``way`` is the least direct kind of link that led here."""
        info = h5o.get_info(group)
        place = info.fileno, info.addr
        if place in self._way:
            self._refuse(path, "group-cycle", f"group {path} holds itself")
            return
        if way == h5l.TYPE_HARD:
            if place in self._seen and not self._allowed(
                path, "overlap", f"group {path} is a second name of a group that was already met"
            ):
                return
            self._seen.add(place)
        self._way.append(place)
        self._group(group, path, way)
        self._way.pop()

    def _group(self, group: Any, path: str, way: int) -> None:
        if len(self._way) - 1 > self._limits.max_depth:
            raise self._over("max_depth", f"groups are nested more than {self._limits.max_depth} deep at {path}")
        self._read_texts(group, path)
        links: list[tuple[bytes, int]] = []
        group.links.iterate(lambda name, info: links.append((name, info.type)), info=True)
        self._links += len(links)
        if self._links > self._limits.max_objects:
            raise self._over("max_objects", f"the file has more than {self._limits.max_objects} links")
        self._groups[path] = tuple(name.decode() for name, _ in links)
        for name, kind in links:
            key = f"{path}/{name.decode()}" if path else name.decode()
            if self._follow(key, kind):
                self._object(group, name, key, max(way, kind))  # hard, soft, external: in this order

    def _object(self, group: Any, name: bytes, key: str, way: int) -> None:
        try:
            child = h5o.open(group, name, self._access)
        except (KeyError, OSError, RuntimeError, TypeError) as error:
            if "too many links" in str(error):
                self._refuse(key, "external-link", f"{key} is a link to a link, which may lead out of the file")
            else:
                self._refuse(key, policy.DAMAGE, f"{key} can't be opened: {error}")
            return
        if isinstance(child, h5d.DatasetID):
            self._dataset(child, key, way)
        elif isinstance(child, h5g.GroupID):
            self._enter(child, key, way)

    def _follow(self, key: str, kind: int) -> bool:
        if kind == h5l.TYPE_HARD:
            return True
        if kind == h5l.TYPE_SOFT:
            return self._allowed(key, "soft-link", f"Not allowed: H5 file with SoftLink ({key})")
        if kind == h5l.TYPE_EXTERNAL:
            return self._allowed(key, "external-link", f"Not allowed: H5 file with ExternalLink ({key})")
        self._refuse(key, policy.USER_LINK_RULE, f"{key} is a link of the user-defined class {kind}")
        return False

    def _dataset(self, dataset: Any, key: str, way: int) -> None:
        dtype = self._dtype(dataset, key)
        shape = dataset.shape
        if dtype is None or shape is None:
            if shape is None:
                self._refuse(key, policy.DTYPE_RULE, f"dataset {key} has no shape (a null dataspace)")
            return
        name, plain = dtype
        record = TensorRecord(key=key, shape=tuple(int(n) for n in shape), dtype=name)
        if record.nbytes == 0:
            self._records[key] = record
            return
        creation = dataset.get_create_plist()
        # Offsets count in the dataset's own file; and one with external storage may have an address all the same.
        here = plain and not creation.get_external_count() and self._is_in_this_file(dataset, way)
        offset = dataset.get_offset() if here else None
        if offset is not None and dataset.get_storage_size() == record.nbytes:
            self._contiguous(record, self._base + offset)
        else:
            self._decoded(dataset, creation, record)

    def _is_in_this_file(self, dataset: Any, way: int) -> bool:
        # Only where external links are allowed may a soft link lead to one.
        if way == h5l.TYPE_HARD or "external-link" not in self._allow:
            return True
        return bool(h5o.get_info(dataset).fileno == self._way[0][0])

    def _contiguous(self, record: TensorRecord, offset: int) -> None:
        if offset < self._base or offset + record.nbytes > self._end:
            raise Truncated(
                f"dataset {record.key} reaches from byte {offset} to {offset + record.nbytes}, "
                f"the file ends at {self._end}",
                file=self._file.path,
                tensor=record.key,
                hint="the file was cut short or is damaged: copy or save it again",
            )
        extents = (Extent(offset, record.nbytes),)
        self._records[record.key] = TensorRecord(record.key, record.shape, record.dtype, "raw", extents)

    def _decoded(self, dataset: Any, creation: Any, record: TensorRecord) -> None:
        layout, key = creation.get_layout(), record.key
        if creation.get_external_count() and not self._allowed(
            key, "external-storage", f"Not allowed: H5 file with external Dataset: {key}"
        ):
            return
        if layout == h5d.VIRTUAL and not self._allowed(
            key, "virtual-dataset", f"Not allowed: H5 file with virtual Dataset ({key})"
        ):
            return
        filters = [creation.get_filter(i)[0] for i in range(creation.get_nfilters())]
        strange = [code for code in filters if code not in policy.ALLOWED_FILTERS]
        if strange and not self._allowed(key, "filter", f"dataset {key} uses the HDF5 filter {strange[0]}"):
            return
        stored = dataset.get_storage_size()
        if policy.exceeds_expansion(record.nbytes, stored) and not self._allowed(
            key,
            "expansion",
            f"Not allowed: H5 dataset '{key}' declares {record.nbytes} bytes but only {stored} are stored on disk; "
            "refusing to load a potential decompression/shape bomb.",
        ):
            return
        parts = {h5d.COMPACT: "compact", h5d.CHUNKED: "chunked", h5d.VIRTUAL: "virtual"}.get(layout, "contiguous")
        if not stored and layout != h5d.VIRTUAL:
            parts += ", never written"
        if record.dtype.startswith(">"):
            parts += ", big-endian"
        detail = ", ".join([parts, *(_FILTER_NAMES.get(code, f"filter {code}") for code in filters)])
        self._records[key] = TensorRecord(key, record.shape, record.dtype, "h5py", (), detail)

    def _dtype(self, dataset: Any, key: str) -> tuple[str, bool] | None:
        """Return the record's dtype and whether the stored bytes are exactly that, little-endian."""
        kind = dataset.get_type()
        for known, name, plain in self._dtypes:
            if kind.equal(known):
                return (self._opaque_name(dataset) if name == "|V2" else name), plain
        try:
            numeric = kind.dtype
        except (TypeError, ValueError) as error:
            self._refuse(key, policy.DTYPE_RULE, f"dataset {key} has a dtype that numpy lacks: {error}")
            return None
        if isinstance(kind, h5t.TypeBitfieldID):
            self._refuse(key, policy.DTYPE_RULE, f"dataset {key} holds bit fields, which no weight can be")
            return None
        if numeric.kind in _NUMERIC_KINDS and numeric.itemsize <= 16 and not self._is_enum(kind, numeric):
            name = numeric.str
        elif isinstance(kind, h5t.TypeOpaqueID) and numeric.itemsize in {1, 2}:
            name = f"|V{numeric.itemsize}"
        else:
            self._refuse(key, policy.DTYPE_RULE, f"dataset {key} has dtype {numeric}, which no weight can have")
            return None
        plain = not name.startswith(">") and (name[1] == "V" or kind.equal(h5t.py_create(numeric, logical=True)))
        self._dtypes.append((kind, name, bool(plain)))
        return (self._opaque_name(dataset) if name == "|V2" else name), bool(plain)

    @staticmethod
    def _is_enum(kind: Any, numeric: np.dtype[Any]) -> bool:
        return isinstance(kind, h5t.TypeEnumID) and numeric.kind != "b"

    @staticmethod
    def _opaque_name(dataset: Any) -> str:
        # Keras marks its two-byte opaque form by an attribute; without it the variable's dtype decides.
        marked = h5a.exists(dataset, b"dtype") and _strings(h5a.open(dataset, b"dtype")) == ("bfloat16",)
        return "bfloat16" if marked else "|V2"

    def _read_texts(self, group: Any, path: str) -> None:
        for index in range(h5a.get_num_attrs(group)):
            attribute = h5a.open(group, index=index)
            name = attribute.name.decode()
            if not _TEXT_ATTRIBUTE.fullmatch(name):
                continue
            values = _strings(attribute)
            if values is None:
                continue
            self._text_bytes += sum(map(len, values))
            if self._text_bytes > self._limits.max_text_bytes:
                raise self._over("max_text_bytes", f"the names take more than {self._limits.max_text_bytes} bytes")
            self._texts[path, name] = values

    def _allowed(self, key: str, rule: str, message: str) -> bool:
        if rule in self._allow:
            return True
        self._refuse(key, rule, message)
        return False

    def _refuse(self, key: str, rule: str, message: str) -> None:
        self._refusals[key] = policy.refusal(key, rule, message)

    def _over(self, limit: str, message: str) -> Refused:
        value = getattr(self._limits, limit)
        option = f"LoadOptions(limits=Limits({limit}=...)) above {value}"
        return Refused(message, rule=limit, option=option, file=self._file.path)


def _strings(attribute: Any) -> tuple[str, ...] | None:
    """Return a text attribute as strings, or ``None`` where it is something else."""
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
