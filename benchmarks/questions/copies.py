"""Experiments: our copies and TensorFlow's, and our kernel beside TensorFlow's ops."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fastassign.assigning.device import tensors
from fastassign.assigning.device.split import split
from fastassign.assigning.host import memory
from fastassign.benchmarks.device.card import Card, sync
from fastassign.benchmarks.device.copies import CopySizes, copy_rate, leased, opened
from fastassign.benchmarks.device.costs import Costs
from fastassign.benchmarks.questions.experiment import Answer, MiB, Scale
from fastassign.kernels.cast import CASTS, cast_bits
from fastassign.kernels.scatter import Scatter
from fastassign.planning.batches import TABLE_ROW_BYTES
from fastassign.streaming.buffers import aligned_array


def pinned(card: Card, scale: Scale) -> Answer:
    """Is page-locked memory faster to copy from than pageable memory, by our own copies and by TensorFlow's?"""
    sizes = CopySizes(total_bytes=scale.total_bytes, slots=4, repeats=scale.repeats)
    piece = min(8 * MiB, scale.nbytes)
    own = {name: copy_rate(card, sizes, piece, locked=name == "locked")["gbps"] for name in ("locked", "pageable")}
    theirs = {name: _by_tensorflow(card, scale, locked=name == "locked") for name in ("locked", "pageable")}
    return Answer(
        f"our copies: {own['locked']:.1f} GB/s page-locked, {own['pageable']:.1f} pageable; TensorFlow's: "
        f"{theirs['locked']:.1f} page-locked, {theirs['pageable']:.1f} pageable",
        {"own_gbps": own, "tensorflow_gbps": theirs},
    )


def _by_tensorflow(card: Card, scale: Scale, *, locked: bool) -> float:
    import tensorflow as tf

    shape = (scale.nbytes // 4,)
    with tf.device(card.name):
        variable = tf.Variable(tf.zeros(shape))
    with leased(card, 1, scale.nbytes, locked=locked) as (lease,), tensors.placed(card.name):
        runs = []
        for _ in range(scale.repeats + 1):
            begin = time.perf_counter()
            memory.assign(variable, lease.memory.view(np.float32), scale.nbytes)
            sync()
            runs.append(time.perf_counter() - begin)
        # On a host device TensorFlow keeps an alias of the array, which must not outlive this block.
        variable.assign(tf.zeros(shape))
        sync()
    return scale.nbytes / sorted(runs[1:])[len(runs[1:]) // 2] / 1e9


def latency(card: Card, scale: Scale) -> Answer:
    """How long does TensorFlow take to copy a small array, one assignment after the other?"""
    figures = {}
    for side in (8, 32, 128, 512):
        costs = Costs(card, variables=scale.variables, repeats=scale.repeats, side=side)
        figures[f"{costs.nbytes} bytes"] = {
            "host_array": costs.assign_host()["seconds"],
            "variable.assign": costs.assign_stock()["seconds"],
            "tensor_of_the_device": costs.assign()["seconds"],
        }
    words = [
        f"{name}: {each['host_array'] * 1e6:.0f} us ({each['tensor_of_the_device'] * 1e6:.0f} from a device tensor)"
        for name, each in figures.items()
    ]
    return Answer("; ".join(words), {"seconds": figures})


def pipelining(card: Card, scale: Scale) -> Answer:
    """Does a tf.function with many host arguments copy them back to back, and how does our own slab compare?"""
    import tensorflow as tf

    costs = Costs(card, variables=scale.variables, repeats=scale.repeats, side=scale.side)
    arrays = [memory.typed(aligned_array(costs.nbytes), costs.shape, "float32", 0) for _ in costs.variables]
    for array in arrays:
        array[...] = 1
    with tf.device("CPU:0"):
        tensors = [tf.constant(array) for array in arrays]

    def assign_all(*values: Any) -> None:
        for variable, value in zip(costs.variables, values, strict=True):
            variable.assign(value, read_value=False)

    specs = (tf.TensorSpec(costs.shape) for _ in arrays)
    called = tf.function(assign_all, autograph=False).get_concrete_function(*specs)

    def call() -> None:
        called(*tensors)
        sync()

    total = costs.nbytes * costs.count
    figures = {
        "function_of_host_tensors": costs.each(call, of=1)["seconds"],
        "eager_host_arrays": costs.assign_host()["seconds"] * costs.count,
        "our_slab_split": _slab_seconds(card, costs),
    }
    rates = ", ".join(
        f"{name} {seconds * 1e3:.2f} ms = {total / seconds / 1e9:.1f} GB/s" for name, seconds in figures.items()
    )
    return Answer(f"{costs.count} variables of {costs.nbytes} bytes: {rates}", {"seconds": figures, "nbytes": total})


def _slab_seconds(card: Card, costs: Costs) -> float:
    batch = costs.batch("split", costs.variables)
    piece = 8 * MiB
    with leased(card, 1, max(batch.arena_bytes, 4096)) as (lease,), opened(card) as stream:

        def once() -> None:
            slab = costs.slab(batch)
            address = tensors.address(slab, card.name)
            with stream:
                for start in range(0, batch.arena_bytes, piece):
                    count = min(piece, batch.arena_bytes - start)
                    stream.copy(address + start, lease.address + start, count)
                mark = stream.record()
            mark.wait()
            with tensors.placed(card.name):
                split(slab, batch)
            sync()

        return float(costs.each(once, of=1)["seconds"])


def coexistence(card: Card, scale: Scale) -> Answer:
    """Do our kernel and TensorFlow's ops work side by side, in one context?"""
    import tensorflow as tf

    before = _context(card)
    first = _scatter(card, 4096)
    with tf.device(card.name):
        value = tf.fill((scale.side, scale.side), 2.0) * 3.0
    works = bool((value.numpy() == 6.0).all())
    second = _scatter(card, 4096)
    with tf.device(card.name):
        again = bool(((value + 1.0).numpy() == 7.0).all())
    after = _context(card)
    return Answer(
        f"the kernel is {'right' if first and second else 'WRONG'}, TensorFlow's ops after it are "
        f"{'right' if works and again else 'WRONG'}; the thread's context was {before} before and {after} after",
        {"kernel": [first, second], "tensorflow": [works, again], "context_before": before, "context_after": after,
         "primary_context": str(card.driver.context(card.ordinal))},
    )  # fmt: skip


def _context(card: Card) -> str:
    return str(card.driver.call("cuCtxGetCurrent"))


def _scatter(card: Card, count: int, kind: str = "copy", bits: np.ndarray[Any, Any] | None = None) -> Any:
    """Run the kernel on float32 bit patterns; return whether it copied them, or for casts its results."""
    bits = np.arange(count, dtype=np.uint32) if bits is None else bits
    wide = 4 if kind == "copy" else 2
    dtype = "float32" if kind == "copy" else kind
    source = tensors.empty((len(bits) + 16,), "float32", card.name)
    target = tensors.empty((len(bits),), dtype, card.name)
    where, there = tensors.address(source, card.name), tensors.address(target, card.name)
    with leased(card, 1, 64 + bits.nbytes) as (lease,), opened(card) as stream:
        length = bits.nbytes if kind == "copy" else len(bits)
        lease.memory[:TABLE_ROW_BYTES].view(np.int64)[:] = (0, 0, length)
        lease.memory[64 : 64 + bits.nbytes].view(np.uint32)[:] = bits
        with stream:
            stream.copy(where, lease.address, 64 + bits.nbytes)
            stream.scatter(
                Scatter(
                    source=where + 64,
                    source_nbytes=bits.nbytes,
                    destination=there,
                    destination_nbytes=len(bits) * wide,
                    table=where,
                    rows=1,
                    longest=length,
                    kind=kind,  # type: ignore[arg-type]
                )
            )
            mark = stream.record()
        mark.wait()
    found = target.numpy().view(np.uint32 if kind == "copy" else np.uint16)
    return bool(np.array_equal(found, bits)) if kind == "copy" else found


def casts(card: Card, scale: Scale) -> Answer:
    """Are casts by TensorFlow and by our kernel on the card equal to numpy's, bit for bit?"""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    special = [0, 0x80000000, 1, 0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF, 0xFF800001,
               0xFFC00001, 0x477FF000, 0x477FEFFF, 0x33000000, 0x33000001, 0x38800000, 0x387FFFFF, 0x7F7FFFFF,
               0x3F808000]  # fmt: skip
    nans = rng.integers(0x7F800001, 0x80000000, 4096, dtype=np.uint32) | (
        rng.integers(0, 2, 4096, dtype=np.uint32) << 31
    )
    some = rng.integers(0, 1 << 32, max(scale.nbytes // 64, 4096), dtype=np.uint32)
    bits = np.concatenate([np.array(special, np.uint32), nans, some])
    bits = bits[: len(bits) // 16 * 16]
    is_nan = np.isnan(bits.view(np.float32))
    figures: dict[str, Any] = {"values": len(bits), "nans": int(is_nan.sum())}
    for (_, name), kind in CASTS.items():
        expected = np.empty(len(bits), np.uint16)
        cast_bits(bits, expected, kind)
        with tf.device(card.name):
            by_tensorflow = tf.cast(tf.constant(bits.view(np.float32)), name).numpy().view(np.uint16)
        found = {"tensorflow": by_tensorflow, "kernel": _scatter(card, 0, kind, bits)}
        for who, values in found.items():
            differs = values != expected
            figures[f"{who}, {name}"] = {
                "differ": int(differs.sum()),
                "of_them_nans": int((differs & is_nan).sum()),
                "examples": [
                    {"float32": f"{bits[i]:08x}", "numpy": f"{expected[i]:04x}", who: f"{values[i]:04x}"}
                    for i in np.flatnonzero(differs)[:8]
                ],
            }
    words = [
        f"{name}: {each['differ']} of {len(bits)} differ, {each['of_them_nans']} of them NaNs"
        for name, each in figures.items()
        if isinstance(each, dict)
    ]
    return Answer("; ".join(words), figures)
