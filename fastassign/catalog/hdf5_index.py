"""The index of any HDF5 file, read by h5py: slower than ``classic``, but complete.

It uses h5py's low-level API, because the high-level one takes twice as long per object.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from h5py import h5a, h5d, h5g, h5l, h5o, h5p, h5t, h5z

from fastassign.catalog import policy
from fastassign.catalog.file import WeightFile
from fastassign.catalog.hdf5 import opened, strings, translated
from fastassign.catalog.records import Contents, Extent, Refusal, TensorRecord
from fastassign.errors import Refused, Truncated

if TYPE_CHECKING:
    import numpy as np

# The attributes of which the Keras layouts consist; long lists are split into layer_names0, layer_names1, ...
_TEXT_ATTRIBUTE = re.compile(r"(?:layer_names|weight_names)\d*|keras_version|backend|name")

_NUMERIC_KINDS = frozenset("iufbc")
_FILTER_NAMES = {h5z.FILTER_DEFLATE: "gzip", h5z.FILTER_SHUFFLE: "shuffle", h5z.FILTER_FLETCHER32: "fletcher32"}


def read_contents(file: WeightFile, *, base: int, size: int, limits: policy.Limits, allow: frozenset[str]) -> Contents:
    """Index an HDF5 file, or one inside another file, through libhdf5.

    Parameters
    ----------
    file : WeightFile
        The open file.
    base, size : int
        Offset and length of the HDF5 data in the file; ``0`` and the file's size for a plain HDF5 file.
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
    with opened(file, base, size) as handle, translated(file):
        # The user block, if any, shifts every address; h5d.get_offset already includes it.
        return _Walk(file, base, size, limits, allow).run(handle)


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
        # Groups as (file, address): all groups met by hard links, and the groups from the root to the current one.
        self._seen: set[tuple[int, int]] = set()
        self._way: list[tuple[int, int]] = []
        self._links = self._text_bytes = 0
        self._access = h5p.create(h5p.LINK_ACCESS)
        if "external-link" not in allow:
            # An allowed soft link may lead to an external link, which libhdf5 would follow by itself.
            self._access.set_nlinks(1)

    def run(self, handle: Any) -> Contents:
        self._enter(h5g.open(handle, b"/"), "", h5l.TYPE_HARD)
        return Contents(records=self._records, groups=self._groups, refusals=self._refusals, texts=self._texts)

    def _enter(self, group: Any, path: str, way: int) -> None:
        """Walk a group, unless it was met before; ``way`` is the least direct kind of link on the way to it."""
        info = h5o.get_info(group)
        place = info.fileno, info.addr
        if place in self._way:
            self._refuse(path, "group-cycle", f"group {path} holds itself")
            return
        if way == h5l.TYPE_HARD:
            if place in self._seen and not self._allowed(
                path, "overlap", f"group {path} is a second name of another group"
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
                self._object(group, name, key, max(way, kind))  # ascending: hard, soft, external

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
        # Offsets count in the dataset's own file. A dataset with external storage may have an address all the same.
        here = plain and not creation.get_external_count() and self._is_in_this_file(dataset, way)
        offset = dataset.get_offset() if here else None
        if offset is not None and dataset.get_storage_size() == record.nbytes:
            self._contiguous(record, self._base + offset)
        else:
            self._decoded(dataset, creation, record)

    def _is_in_this_file(self, dataset: Any, way: int) -> bool:
        # A soft link can lead out of the file only if external links are allowed.
        if way == h5l.TYPE_HARD or "external-link" not in self._allow:
            return True
        return bool(h5o.get_info(dataset).fileno == self._way[0][0])

    def _contiguous(self, record: TensorRecord, offset: int) -> None:
        if offset < self._base or offset + record.nbytes > self._end:
            raise Truncated(
                f"dataset {record.key} reaches from byte {offset} to byte {offset + record.nbytes}, "
                f"but the file ends at byte {self._end}",
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
            self._refuse(key, policy.DTYPE_RULE, f"dataset {key} has a dtype that numpy does not have: {error}")
            return None
        if isinstance(kind, h5t.TypeBitfieldID):
            self._refuse(key, policy.DTYPE_RULE, f"dataset {key} holds bit fields, which can't be weights")
            return None
        if numeric.kind in _NUMERIC_KINDS and numeric.itemsize <= 16 and not self._is_enum(kind, numeric):
            name = numeric.str
        elif isinstance(kind, h5t.TypeOpaqueID) and numeric.itemsize in {1, 2}:
            name = f"|V{numeric.itemsize}"
        else:
            self._refuse(key, policy.DTYPE_RULE, f"dataset {key} has dtype {numeric}, which weights can't have")
            return None
        plain = not name.startswith(">") and (name[1] == "V" or kind.equal(h5t.py_create(numeric, logical=True)))
        self._dtypes.append((kind, name, bool(plain)))
        return (self._opaque_name(dataset) if name == "|V2" else name), bool(plain)

    @staticmethod
    def _is_enum(kind: Any, numeric: np.dtype[Any]) -> bool:
        return isinstance(kind, h5t.TypeEnumID) and numeric.kind != "b"

    @staticmethod
    def _opaque_name(dataset: Any) -> str:
        # Keras marks bfloat16, which it stores as two opaque bytes, by an attribute. Without it the variable's dtype
        # decides.
        marked = h5a.exists(dataset, b"dtype") and strings(h5a.open(dataset, b"dtype")) == ("bfloat16",)
        return "bfloat16" if marked else "|V2"

    def _read_texts(self, group: Any, path: str) -> None:
        for index in range(h5a.get_num_attrs(group)):
            attribute = h5a.open(group, index=index)
            name = attribute.name.decode()
            if not _TEXT_ATTRIBUTE.fullmatch(name):
                continue
            values = strings(attribute)
            if values is None:
                continue
            self._text_bytes += sum(map(len, values))
            if self._text_bytes > self._limits.max_text_bytes:
                raise self._over("max_text_bytes", f"names take more than {self._limits.max_text_bytes} bytes")
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
