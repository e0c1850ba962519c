"""Launches of the kernels that spread the values of a packed slab over the card's memory, and cast them on the way.

Importing this module imports neither numba nor CUDA. The first launch of a kind in a process compiles its kernel, or
finds it on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from fastassign.kernels.cast import quiet_bit

Kind = Literal["copy", "bfloat16", "float16"]

_THREADS = 256
# The most blocks of a launch: tens for each multiprocessor of the largest cards. Each row gets a share of them, and
# blocks beyond its elements end at once. Many more would take longer to start than they save (reasoned, not measured).
_MAX_BLOCKS = 32768
# numba warns about a smaller grid, even where there is no more work.
_MIN_BLOCKS = 128
# The widest element that a kernel reads or writes, in bytes.
_WORD = 8


def available() -> str | None:
    """Return why kernels can't be launched here; None if they can."""
    try:
        from numba import config, cuda

        if config.ENABLE_CUDASIM:
            return "numba's CUDA simulator is on (NUMBA_ENABLE_CUDASIM)"
        if cuda.is_available():
            return None
        error = cuda.cuda_error()
    except Exception as failure:  # noqa: BLE001 - a half-installed CUDA fails in many ways
        error = str(failure)
    reason = " ".join(str(error or "it finds no NVVM (install numba-cuda)").split())
    return f"numba can't use CUDA: {reason}"


@dataclass(frozen=True, slots=True)
class Scatter:
    """The work of one launch: a slab, a table of rows, and the span of device memory that the rows are put into.

    The kernel trusts the table: rows must lie inside the slab and the span, and no two may write to the same place.

    Attributes
    ----------
    source, source_nbytes : int
        Address of the slab on the device, a multiple of 8, and its bytes.
    destination, destination_nbytes : int
        Address of the lowest destination, a multiple of 8, and the bytes from there to the end of the highest. Memory
        in between may belong to others: the kernel touches only the bytes that the rows name.
    table : int
        Address on the device of an array int64 of shape ``[rows, 3]``, C order. A row gives the start of a value in the
        slab, its start from ``destination`` on, and its length; in bytes for ``"copy"``, else in elements: float32 in
        the slab, 16 bits in the destination. A copy moves words of 8 bytes where both starts are multiples of 8, and
        single bytes elsewhere.
    rows : int
        Rows of the table.
    longest : int
        Length of the longest row, in the table's unit.
    kind : {"copy", "bfloat16", "float16"}
        ``"copy"`` moves bytes of any dtype. The others cast float32, bit for bit as
        `fastassign.kernels.cast.cast_bits` does.
    """

    source: int
    source_nbytes: int
    destination: int
    destination_nbytes: int
    table: int
    rows: int
    longest: int
    kind: Kind


def launch(work: Scatter, *, stream: int, ordinal: int) -> None:
    """Copy or cast every row of a table from one span of device memory into another.

    Returns when the kernel is on the stream; the caller keeps all three spans alive until the kernel has run. May be
    called from any thread.

    Parameters
    ----------
    work : Scatter
        Addresses, sizes and the kind of work.
    stream : int
        ``CUstream`` that the kernel is put on; 0 is the default stream.
    ordinal : int
        The driver's number of the device.

    Raises
    ------
    ValueError
        An address is not aligned, or the kind is unknown.
    """
    if work.kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {work.kind!r}")
    if (work.source | work.destination | work.table) % _WORD:
        raise ValueError(f"source, destination and table must be multiples of {_WORD}")
    if not work.rows or not work.longest:
        return
    from numba import cuda

    from fastassign.kernels.cuda import scatter_bytes, scatter_cast

    def span(address: int, typestr: str, *shape: int) -> Any:
        return cuda.as_cuda_array(_Span(address, typestr, shape), sync=False)

    with cuda.gpus[ordinal]:
        steps = -(-work.longest // _WORD) if work.kind == "copy" else work.longest
        configuration = grid(work.rows, steps), _THREADS, cuda.external_stream(stream)
        table = span(work.table, "<i8", work.rows, 3)
        if work.kind == "copy":
            scatter_bytes[configuration](
                span(work.source, "|u1", work.source_nbytes),
                span(work.destination, "|u1", work.destination_nbytes),
                span(work.source, "<u8", work.source_nbytes // _WORD),
                span(work.destination, "<u8", work.destination_nbytes // _WORD),
                table,
            )
        else:
            scatter_cast[configuration](
                span(work.source, "<u4", work.source_nbytes // 4),
                span(work.destination, "<u2", work.destination_nbytes // 2),
                table,
                work.kind == "float16",
                quiet_bit(),
            )


def grid(rows: int, steps: int) -> tuple[int, int]:
    """Return the blocks of a launch along a row and across the rows; the longest row has work for ``steps`` threads."""
    down = min(rows, _MAX_BLOCKS)
    along = min(-(-steps // _THREADS), _MAX_BLOCKS // down)
    return max(along, -(-_MIN_BLOCKS // down)), down


class _Span:
    """Device memory that somebody else owns, in a form that numba takes (the CUDA array interface, version 3)."""

    __slots__ = ("__cuda_array_interface__",)

    def __init__(self, address: int, typestr: str, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {"data": (address, False), "shape": shape, "typestr": typestr, "version": 3}
