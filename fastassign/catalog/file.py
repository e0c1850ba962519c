"""An open weight file: its identity, and exact reads.

The descriptor stays open from the index to the last byte. So the file that was checked is the file that is read, even
if the path leads to another file in between.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fastassign.errors import Changed, Denied, Malformed, NotAFile, NotFound, Truncated, Unreadable


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of one state of a file: a write moves ``mtime_ns`` and ``ctime_ns``."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, descriptor: int) -> Identity:
        """Read the identity of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class WeightFile:
    """A file opened for reading.

    Threads: ``read`` and ``check_unchanged`` may be called from any thread at once; ``close`` from one thread, when all
    others are done.

    Parameters
    ----------
    path : str or os.PathLike
        The file.
    descriptor : int, optional
        A descriptor that is open already; it becomes this object's.

    Raises
    ------
    NotFound, Denied, NotAFile, Unreadable
        The file can't be opened; the text is h5py's, as stock Keras raises it.
    """

    def __init__(self, path: str | os.PathLike[str], *, descriptor: int | None = None) -> None:
        self.path = Path(path)
        self.descriptor = _open(self.path) if descriptor is None else descriptor
        self.identity = Identity.of(self.descriptor)

    def __del__(self) -> None:
        """Close a forgotten file: an inflated archive takes disk space for as long as it is open."""
        if hasattr(self, "descriptor"):
            self.close()

    def duplicate(self) -> WeightFile:
        """Return a second handle on the same open file, even if its name is gone."""
        return WeightFile(self.path, descriptor=os.dup(self.descriptor))

    def __enter__(self) -> WeightFile:
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    @property
    def size(self) -> int:
        """Bytes in the file when it was opened."""
        return self.identity.size

    def read_some(self, offset: int, nbytes: int) -> bytes:
        """Return up to ``nbytes`` bytes from ``offset``; fewer only at the end of the file."""
        return os.pread(self.descriptor, nbytes, offset)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly ``nbytes`` bytes from ``offset``, or raise ``Truncated``."""
        pieces = []
        missing = nbytes
        while missing:
            piece = os.pread(self.descriptor, missing, offset + nbytes - missing)
            if not piece:
                raise Truncated(
                    f"{self.path} ends at byte {offset + nbytes - missing}, {missing} bytes short of its declared data",
                    file=self.path,
                    hint="the file was cut short: copy or save it again",
                )
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers in order from ``offset`` on; return the number of bytes read, 0 only at the end."""
        return os.preadv(self.descriptor, buffers, offset)

    def check_unchanged(self) -> None:
        """Raise ``Changed`` if the file was written to, or cut, since it was opened."""
        now = Identity.of(self.descriptor)
        if now == self.identity:
            return
        if now.size < self.identity.size:
            raise Truncated(
                f"{self.path} shrank from {self.identity.size} to {now.size} bytes while it was being read",
                file=self.path,
                hint="write a new file and rename it over the old one instead of writing in place",
            )
        # A new link or a changed mode moves ctime alone, and does not change the bytes.
        if (now.size, now.mtime_ns) != (self.identity.size, self.identity.mtime_ns):
            raise Changed(
                f"{self.path} was modified while it was being read",
                file=self.path,
                hint="write a new file and rename it over the old one instead of writing in place",
            )

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not wait for its writer
    except OSError as error:
        raise unreadable(path, error) from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise unreadable(path, IsADirectoryError(21, os.strerror(21), str(path)))
    raise Malformed(
        f"{path} is not a regular file",
        file=path,
        hint="copy it to a file first: a weight file is read at many places at once",
    )


def unreadable(path: Path, error: OSError) -> Unreadable:
    """Translate the system's error for a file that can't be opened into h5py's words, which stock Keras raises."""
    text = (
        f"[Errno {error.errno}] Unable to synchronously open file (unable to open file: name = '{path}', "
        f"errno = {error.errno}, error message = '{os.strerror(error.errno or 0)}', flags = 0, o_flags = 0)"
    )
    kind, hint, summary = Unreadable, "check that this process can read the path", f"can't open ({error.strerror})"
    if isinstance(error, FileNotFoundError):
        kind, hint, summary = NotFound, "check the path; a file saved in shards ends in .weights.json", "no such file"
    elif isinstance(error, PermissionError):
        kind, hint, summary = Denied, "give this process the right to read the file", "no permission to read"
    elif isinstance(error, IsADirectoryError):
        kind, hint, summary = NotAFile, "name the file inside the directory", "this is a directory"
    translated = kind(text, file=path, hint=hint, summary=f"{summary}: {path}")
    translated.errno, translated.filename = error.errno, str(path)
    return translated
