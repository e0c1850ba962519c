"""Arrays that are in memory already, in place of a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class ArrayRecord:
    """One array.

    Attributes
    ----------
    key : str
        What errors call it.
    array : numpy.ndarray
        The values, in any dtype, byte order and strides.
    shape : tuple of int
        The array's shape.
    nbytes : int
        Bytes of the values in the variable's dtype, to which they are cast while they are copied.
    detail : str
        The cast; empty where there is none.
    """

    key: str
    array: np.ndarray[Any, Any]
    shape: tuple[int, ...]
    nbytes: int
    detail: str = ""
    encoding: Literal["array"] = "array"
    extents: tuple[()] = ()

    @property
    def dtype(self) -> str:
        """The name of the array's dtype."""
        return str(self.array.dtype.name)


class MemoryFile:
    """Stands where an open file stands: nobody else can change it, and there is nothing to close."""

    descriptor = -1

    def __enter__(self) -> MemoryFile:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing."""

    def check_unchanged(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class MemoryCatalog:
    """Stands where the catalog of a file stands."""

    path: Path = field(default=Path("memory"))
    cached: bool = False

    def open(self) -> MemoryFile:
        """Return something that closes like a file."""
        return MemoryFile()
