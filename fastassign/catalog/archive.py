"""``.keras`` archives: the place of the weights in them, or their inflated copy.

A ``.keras`` file is a zip archive (PKWARE APPNOTE.TXT, section 4.3). Keras stores its member ``model.weights.h5``
without compression, so the HDF5 file inside can be read in place: its first byte is at the member's local header plus
30 bytes plus the two lengths in that header (section 4.3.7). Stock reads it through ``ZipExtFile``, seek by seek, which
takes ten times as long as the plain file.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fastassign.catalog.file import WeightFile
from fastassign.errors import Malformed, Refused, Truncated

MEMBER = "model.weights.h5"

_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_PIECE = 1 << 20


def ends_in_archive(file: WeightFile) -> bool:
    """Whether the file ends like a zip archive, whatever it begins with."""
    with _reader(file) as outer:
        return zipfile.is_zipfile(outer)


def locate(file: WeightFile) -> tuple[int, int] | None:
    """Find the stored weights member.

    Returns
    -------
    (int, int) or None
        Offset of the member's first byte in the file and its size in bytes; ``None`` where the member is
        compressed and has to be inflated first (``inflate``).

    Raises
    ------
    Malformed
        The file is not a zip archive, or one without weights.
    Truncated
        The member reaches past the end of the file.
    Refused
        The member is encrypted, a link, or named twice.
    """
    info = _member(file)
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    start = _data_offset(file, info)
    if info.compress_size != info.file_size:
        raise Malformed(f"{MEMBER} is stored uncompressed, but its two sizes differ", file=file.path, tensor=MEMBER)
    return start, info.file_size


def inflate(file: WeightFile, *, max_bytes: int) -> WeightFile:
    """Unpack a compressed weights member into an unnamed temporary file.

    Parameters
    ----------
    file : WeightFile
        The archive.
    max_bytes : int
        The most bytes that the member may inflate to.

    Returns
    -------
    WeightFile
        The HDF5 file; it vanishes when it is closed.

    Raises
    ------
    Refused
        The member is larger than ``max_bytes``.
    Malformed
        The member can't be inflated.
    """
    info = _member(file)
    if info.file_size > max_bytes:
        raise _too_large(file, info.file_size, max_bytes)
    directory = Path(tempfile.mkdtemp(prefix="fastassign-"))
    target = directory / MEMBER
    try:
        with target.open("wb") as out:
            for piece in _pieces(file, info):
                out.write(piece)
        return WeightFile(target)
    finally:
        # The descriptor keeps the data. The name is removed at once, so that it never outlives the process.
        with suppress(FileNotFoundError):
            target.unlink()
        directory.rmdir()


def _pieces(file: WeightFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Inflate a member; zipfile stops at the size that the member declares."""
    try:
        with _reader(file) as outer, zipfile.ZipFile(outer) as archive, archive.open(info) as member:
            while piece := member.read(_PIECE):
                yield piece
    except Exception as error:  # each codec has errors of its own; bz2's is OSError
        raise Malformed(f"{MEMBER} can't be inflated: {error}", file=file.path, tensor=MEMBER) from error


def _too_large(file: WeightFile, nbytes: int, limit: int) -> Refused:
    return Refused(
        f"{MEMBER} inflates to {nbytes} bytes, more than the {limit} allowed",
        rule="archive-size",
        option="LoadOptions(max_staging_bytes=...)",
        file=file.path,
        tensor=MEMBER,
    )


def _reader(file: WeightFile) -> io.BufferedReader:
    # zipfile closes the file that it is given, so it gets a duplicate. Nothing else uses the position that both share.
    return os.fdopen(os.dup(file.descriptor), "rb")


def _member(file: WeightFile) -> zipfile.ZipInfo:
    try:
        with _reader(file) as outer, zipfile.ZipFile(outer) as archive:
            found = [info for info in archive.infolist() if info.filename == MEMBER]
    except Exception as error:  # zipfile lets through errors of struct, seek and the codecs of names
        hint = "a .keras file is a zip archive; this one was cut short or is something else"
        raise Malformed(f"{error}", file=file.path, hint=hint) from error
    if not found:
        hint = "the archive holds no HDF5 weights (it may have been saved with another weights format)"
        raise Malformed(f"There is no item named {MEMBER!r} in the archive", file=file.path, hint=hint)
    info = found[0]
    reason = ""
    if len(found) > 1:
        reason = "named twice in the archive"
    elif info.flag_bits & 0x1:
        reason = "encrypted"
    elif stat.S_ISLNK(info.external_attr >> 16):
        reason = "a symbolic link"
    if reason:
        raise Refused(f"{MEMBER} is {reason}", rule="archive-member", file=file.path)
    return info


def _data_offset(file: WeightFile, info: zipfile.ZipInfo) -> int:
    if not 0 <= info.header_offset < file.size:
        raise Malformed(f"{MEMBER} starts outside of the archive", file=file.path, tensor=MEMBER)
    header = file.read(info.header_offset, _LOCAL_HEADER.size)
    signature, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if signature != _LOCAL_SIGNATURE:
        raise Malformed(f"{MEMBER} has no local header at its offset", file=file.path, tensor=MEMBER)
    start = info.header_offset + _LOCAL_HEADER.size + int(name_length) + int(extra_length)
    if start + info.file_size > file.size:
        raise Truncated(f"{MEMBER} reaches past the end of the archive", file=file.path, tensor=MEMBER)
    return start
