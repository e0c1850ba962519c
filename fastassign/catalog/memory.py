"""Arrays in memory, in place of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from fastassign.errors import FastAssignError

if TYPE_CHECKING:
    import numpy as np

    from fastassign.catalog.records import TensorRecord


@dataclass(frozen=True, slots=True, eq=False)
class ArrayRecord:
    """One array.

    Attributes
    ----------
    key : str
        The name that errors give it.
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


class OpenMemory:
    """Stands where an open file stands; see ``fastassign.catalog.origin.OpenOrigin``."""

    descriptor = -1

    def __enter__(self) -> OpenMemory:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is nothing to close."""

    def preadv(self, buffers: Sequence[memoryview], offset: int) -> int:  # noqa: ARG002
        """Return 0: no record of an array has a place to read from."""
        return 0

    def decode(self, record: TensorRecord, array: np.ndarray[Any, Any]) -> None:  # noqa: ARG002
        """Raise ``KeyError``: there are no datasets among arrays."""
        raise KeyError(record.key)

    def check_unchanged(self) -> None:
        """Do nothing: the caller keeps the arrays."""


@dataclass(frozen=True, slots=True)
class ArraysInMemory:
    """Arrays of the caller; see ``fastassign.catalog.origin.Origin``."""

    path: Path = field(default=Path("memory"))
    cached: bool = False

    def open(self) -> OpenMemory:
        """Return something that closes like a file."""
        return OpenMemory()

    def name_in(self, error: FastAssignError) -> FastAssignError:
        """Return the error as it is: there is no file to name."""
        return error
