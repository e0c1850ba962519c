"""The index cache: indexes of files that were opened before, in the user's cache folder.

Reading the index of a file with 5,000 tensors takes longer than reading its data. Each cached index is a JSON file,
named after the identity of the weight file (device, inode, size, and both times in nanoseconds). It is checked against
the weight file's bounds when it is read, replaced as a whole when it is written, and may be deleted at any time.

``FASTASSIGN_CACHE=off`` switches the cache off; any other value is the folder to use.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tempfile
import time
import zlib
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from fastassign.catalog.file import Identity
from fastassign.catalog.records import Contents, Extent, Index, Refusal, TensorRecord, itemsize_of

# The version of the layout below. It grows with every change, so that old entries are ignored.
FORMAT = 1

# The most entries that are kept; a weight file of 1,000 tensors has an entry of about 60 kB.
MAX_ENTRIES = 256

# A file of 1,000,000 tensors has an entry of about 100 MB.
MAX_ENTRY_BYTES = 256 << 20

_ENTRY_NAME = re.compile(r"[0-9a-f]+(?:-[0-9a-f]+){4}\.json")
_DTYPE = re.compile(r"\|[biu]1|[<>][iu][248]|[<>]f(?:2|4|8|16)|[<>]c(?:8|16)|\|V[12]|bfloat16")

# A file that is written to twice within one tick of the file system's clock keeps its times. Linux ticks at least every
# 10 ms; file systems that store whole seconds are recognised by the zeros in their times.
_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_000_000_000


def folder() -> Path | None:
    """Return the folder of the cache, or ``None`` if it is switched off."""
    setting = os.environ.get("FASTASSIGN_CACHE", "")
    if setting.lower() in {"off", "0", "no", "false"}:
        return None
    if setting:
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "fastassign" / "index"


def load(identity: Identity) -> Index | None:
    """Return the index of a file, or ``None`` if it is not cached or the entry is not sound."""
    place = folder()
    if place is None:
        return None
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with open(_entry(place, identity), "rb", opener=lambda path, _: os.open(path, flags)) as entry:
            if not _is_ours(os.fstat(entry.fileno())):
                return None
            stored = entry.read()
    except OSError:
        return None
    try:
        return _decode(stored, identity)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError):
        return None


def store(identity: Identity, index: Index) -> bool:
    """Keep the index of a file; return whether it was kept.

    Nothing is kept for a file that was written to a moment ago: a second write in the same tick of the clock would go
    unnoticed. A folder that can't be written to is not an error: the next load indexes the file again.
    """
    place = folder()
    if place is None or _is_racy(identity):
        return False
    entry = _entry(place, identity)
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".new-", delete=False) as new:
            try:
                new.write(_encode(identity, index))
                new.flush()
                os.replace(new.name, entry)
            except BaseException:
                os.unlink(new.name)
                raise
    except OSError:
        return False
    with suppress(OSError):
        _prune(place, entry)
    return True


def _is_ours(status: os.stat_result) -> bool:
    """Whether no other user can have written an entry."""
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not writable
    return own and status.st_size <= MAX_ENTRY_BYTES


def _is_racy(identity: Identity) -> bool:
    coarse = identity.mtime_ns % 1_000_000_000 == 0
    newest = max(identity.mtime_ns, identity.ctime_ns)
    return time.time_ns() - newest < (_COARSE_TICK_NS if coarse else _TICK_NS)


def _entry(place: Path, identity: Identity) -> Path:
    device, inode, *rest = astuple(identity)
    return place / f"{device:x}-{inode:x}-{'-'.join(f'{part:x}' for part in rest)}.json"


def _prune(place: Path, newest: Path) -> None:
    same_file = "-".join(newest.name.split("-")[:2]) + "-"
    entries = []
    for path in place.glob("*.json"):
        if not _ENTRY_NAME.fullmatch(path.name):  # other programs may use the folder too
            continue
        if path != newest and path.name.startswith(same_file):
            path.unlink(missing_ok=True)
            continue
        with suppress(FileNotFoundError):  # another process pruned it
            entries.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(entries)[:-MAX_ENTRIES]:
        path.unlink(missing_ok=True)


def _encode(identity: Identity, index: Index) -> bytes:
    contents = index.contents
    records = list(contents.records.values())
    body = json.dumps(
        {
            "format": FORMAT,
            "identity": astuple(identity),
            "base": index.base,
            "size": index.size,
            "keys": [record.key for record in records],
            "shapes": [record.shape for record in records],
            "dtypes": [record.dtype for record in records],
            "offsets": [record.extents[0].offset if record.extents else -1 for record in records],
            "details": {record.key: record.detail for record in records if record.encoding == "h5py"},
            "groups": contents.groups,
            "refusals": [(r.key, r.rule, r.message, r.option) for r in contents.refusals.values()],
            "texts": [(path, name, values) for (path, name), values in contents.texts.items()],
        },
        separators=(",", ":"),
    ).encode()
    return b"%08x\n" % zlib.crc32(body) + body


def _decode(stored: bytes, identity: Identity) -> Index | None:
    checksum, _, body = stored.partition(b"\n")
    if int(checksum, 16) != zlib.crc32(body):
        return None
    data = json.loads(body, parse_float=_reject, parse_constant=_reject)
    if data["format"] != FORMAT or tuple(data["identity"]) != astuple(identity):
        return None
    base, size = int(data["base"]), int(data["size"])
    if base < 0 or size < 0 or base + size > identity.size:
        return None
    records = _records(data, base, base + size)
    if records is None:
        return None
    contents = Contents(
        records=records,
        groups={path: _strings(names) for path, names in data["groups"].items()},
        refusals={key: Refusal(key, rule, message, option) for key, rule, message, option in data["refusals"]},
        texts={(path, name): _strings(values) for path, name, values in data["texts"]},
    )
    _strings(contents.refusals)
    return Index(base=base, size=size, contents=contents)


def _reject(number: str) -> None:
    raise ValueError(f"{number} is not a number of an index")


def _strings(values: Any) -> tuple[str, ...]:
    """Return strings as a tuple; anything else raises TypeError."""
    "".join(values)
    return tuple(values)


def _records(data: dict[str, Any], base: int, end: int) -> dict[str, TensorRecord] | None:
    records = {}
    details = data["details"]
    dtypes = set(data["dtypes"])
    if not all(map(_DTYPE.fullmatch, dtypes)):
        return None
    itemsizes = {dtype: itemsize_of(dtype) for dtype in dtypes}
    _strings(data["keys"])
    _strings(details.values())
    shapes = [tuple(dims) for dims in data["shapes"]]
    if any(not isinstance(length, int) or length < 0 for shape in set(shapes) for length in shape):
        return None
    for key, shape, dtype, offset in zip(data["keys"], shapes, data["dtypes"], data["offsets"], strict=True):
        if key in details:
            records[key] = TensorRecord(key, shape, dtype, "h5py", (), details[key])
            continue
        nbytes = itemsizes[dtype] * math.prod(shape)
        if nbytes == 0:
            records[key] = TensorRecord(key, shape, dtype)
            continue
        if offset < base or offset + nbytes > end:
            return None
        records[key] = TensorRecord(key, shape, dtype, "raw", (Extent(offset, nbytes),))
    return records
