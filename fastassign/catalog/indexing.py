"""Indexing a weight file: from its path to its catalog.

The index comes from the cache, or from ``classic``, or else from h5py.
"""

from __future__ import annotations

import os

from fastassign.catalog import index_cache
from fastassign.catalog.catalog import Catalog
from fastassign.catalog.classic import index as classic
from fastassign.catalog.file import WeightFile
from fastassign.catalog.policy import Limits
from fastassign.catalog.records import Index

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


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
        Bounds on the whole file.
    allow : frozenset of str
        Rules of the policy to switch off.
    use_cache : bool
        Whether the index may come from the cache and be kept there.
    max_inflated_bytes : int
        The most bytes that compressed weights inside an archive may inflate to.

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
    """Return offset and length of the HDF5 data in a file; ``None`` if it is compressed in an archive."""
    if not is_archive(file):
        return 0, file.size
    from fastassign.catalog import archive

    return archive.locate(file)


def is_archive(file: WeightFile) -> bool:
    """Whether the weights are in a zip archive; like Keras, never take a file called ``.h5`` for one."""
    if file.path.name.endswith((".h5", ".hdf5")):
        return False
    head = file.read_some(0, len(_HDF5_SIGNATURE))
    if head.startswith(b"PK\x03\x04"):
        return True
    if head == _HDF5_SIGNATURE or not file.path.name.endswith(".keras"):
        return False
    from fastassign.catalog import archive

    return archive.ends_in_archive(file)  # zip allows other bytes before the archive


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
        from fastassign.catalog import hdf5_index  # h5py takes 20 ms to import, and most files don't need it

        contents = hdf5_index.read_contents(file, base=base, size=size, limits=limits, allow=allow)
    return Index(base=base, size=size, contents=contents)
