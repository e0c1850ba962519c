"""The costs of single steps of a load to a device: the figures behind ``fastassign/planning/costs.py``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastassign.assigning.device import tensors
from fastassign.assigning.device.split import split
from fastassign.assigning.host import memory
from fastassign.assigning.host.fused import Fusions
from fastassign.benchmarks.device.card import Card, sync
from fastassign.benchmarks.device.copies import leased, opened
from fastassign.benchmarks.steps import Steps
from fastassign.catalog.records import Extent, TensorRecord
from fastassign.kernels.scatter import Scatter
from fastassign.matching.assignment import Assignment
from fastassign.options import DeviceOptions, LoadOptions
from fastassign.planning import costs
from fastassign.planning.batches import TABLE_ROW_BYTES, Batch, BatchLimits, make_batches, run_lengths
from fastassign.planning.lanes import Device, Devices
from fastassign.planning.routes import ALIGNMENT, place
from fastassign.streaming.buffers import aligned_array
from fastassign.targets.variables import tf_target

HEAD = ("step", "constant", "measured us", "costs.py us", "runs")

# Variables of a measurement, and the rows and columns of each: 4 KB.
VARIABLES = 1000
SIDE = 32


class Costs:
    """The measurements; each returns seconds of one step.

    Parameters
    ----------
    card : Card
        The device.
    variables : int
        How many variables a measurement has.
    repeats : int
        Runs behind each median.
    side : int
        Rows and columns of a variable.
    """

    def __init__(self, card: Card, *, variables: int, repeats: int, side: int = SIDE) -> None:
        import tensorflow as tf

        self.card, self.count, self.repeats = card, variables, repeats
        self.shape, self.nbytes = (side, side), 4 * side * side
        with tf.device(card.name):
            self.variables = [tf.Variable(tf.zeros(self.shape)) for _ in range(variables)]
        sync()

    def each(self, action: Callable[[], Any], *, of: int | None = None) -> dict[str, Any]:
        """Time an action repeatedly; return the seconds of one of its ``of`` steps (default: one for each variable)."""
        steps = of or self.count
        action()
        runs = []
        for _ in range(self.repeats):
            sync()
            begin = time.perf_counter()
            action()
            runs.append((time.perf_counter() - begin) / steps)
        sync()
        return {"seconds": statistics.median(runs), "runs": runs}

    def empties(self) -> list[Any]:
        """Make a tensor of the device for each variable."""
        return [tensors.empty(self.shape, "float32", self.card.name) for _ in range(self.count)]

    def assign(self) -> dict[str, Any]:
        """Assign tensors that are on the device."""
        with tensors.placed(self.card.name):
            values = self.empties()
            return self.each(lambda: self.assign_all(values))

    def assign_all(self, values: Sequence[Any]) -> None:
        """Assign a value to each variable, by the raw op."""
        for variable, value in zip(self.variables, values, strict=True):
            memory.assign(variable, value, self.nbytes)

    def assign_host(self) -> dict[str, Any]:
        """Assign host arrays of 4 KB, which TensorFlow copies to the device one by one."""
        arrays = [memory.typed(aligned_array(self.nbytes), self.shape, "float32", 0) for _ in range(self.count)]
        for array in arrays:
            array[...] = 1
        with tensors.placed(self.card.name):
            return self.each(lambda: self.assign_all(arrays))

    def assign_stock(self) -> dict[str, Any]:
        """Assign host arrays by the variable's own method."""
        array = np.ones(self.shape, np.float32)
        return self.each(lambda: [variable.assign(array, read_value=False) for variable in self.variables])

    def empty(self) -> dict[str, Any]:
        """Allocate."""
        return self.each(self.empties)

    def address(self) -> dict[str, Any]:
        """Ask for addresses by DLPack, while the device is idle."""
        values = self.empties()
        return self.each(lambda: [tensors.address(value, self.card.name) for value in values])

    def allocate(self) -> dict[str, Any]:
        """Allocate, then ask for addresses."""
        return self.each(lambda: [tensors.address(value, self.card.name) for value in self.empties()])

    def copy(self, *, fences: bool) -> dict[str, Any]:
        """Submit copies of 4 KB, with a fence behind each or one behind all."""
        landing = tensors.empty((self.nbytes,), "uint8", self.card.name)
        address = tensors.address(landing, self.card.name)
        with leased(self.card, 1, self.nbytes) as (lease,), opened(self.card) as stream:

            def submit() -> None:
                with stream:
                    marks = []
                    for _ in range(self.count):
                        stream.copy(address, lease.address, self.nbytes)
                        if fences:
                            marks.append(stream.record())
                    marks.append(stream.record())
                marks[-1].wait()

            return self.each(submit)

    def batch(self, cut: str, variables: Sequence[Any]) -> Batch:
        """Plan a batch of variables, as a load does."""
        card, options = self.card, LoadOptions(device=DeviceOptions(route="fused", cut=cut))  # type: ignore[arg-type]
        devices = Devices(reached={card.name: Device(card.name)})
        slot_bytes = 2 * (self.nbytes + ALIGNMENT) * len(variables) + (1 << 20)
        placements, offset = [], 0
        for number, variable in enumerate(variables):
            target = tf_target(variable, handles=True)
            record = TensorRecord(f"{number}", target.shape, target.dtype, extents=(Extent(offset, target.nbytes),))
            offset += target.nbytes
            assignment = Assignment(record, target, "same")
            placements.append(place(assignment, options, repeated=True, devices=devices, slot_bytes=slot_bytes))
        sizes = BatchLimits(room=1 << 40, slot_bytes=slot_bytes)
        (batch,) = make_batches(placements, options, sizes, devices, repeated=True)
        return batch

    def slab(self, batch: Batch) -> Any:
        """Make the tensor that holds the values of a batch."""
        return tensors.empty((batch.arena_bytes // ALIGNMENT, ALIGNMENT // 4), "float32", self.card.name)

    def split(self) -> dict[str, Any]:
        """Cut up a slab of one shape by eager ops, and assign the pieces."""
        return self._split(self.variables)

    def split_runs(self) -> dict[str, Any]:
        """Do the same with as many shapes as variables (of a tenth of them): a figure for each."""
        import tensorflow as tf

        with tf.device(self.card.name):
            variables = [tf.Variable(tf.zeros((number + 1, 16))) for number in range(max(self.count // 10, 2))]
        return self._split(variables)

    def _split(self, variables: Sequence[Any]) -> dict[str, Any]:
        batch = self.batch("split", variables)
        slab = self.slab(batch)

        def cut() -> None:
            with tensors.placed(self.card.name):
                split(slab, batch)

        return {**self.each(cut, of=len(variables)), "shapes": len(run_lengths(batch.placements))}

    def function_make(self) -> dict[str, Any]:
        """Make a function, and call it the first time."""
        runs = []
        for _ in range(min(self.repeats, 3)):
            batch = self.batch("function", self.variables)
            slab = self.slab(batch)
            begin = time.perf_counter()
            Fusions().of(batch).assign(slab)
            sync()
            runs.append((time.perf_counter() - begin) / self.count)
        return {"seconds": statistics.median(runs), "runs": runs}

    def function_call(self) -> dict[str, Any]:
        """Call a function that exists already."""
        batch = self.batch("function", self.variables)
        slab, fusions = self.slab(batch), Fusions()

        def call() -> None:
            with tensors.placed(self.card.name):
                fusions.of(batch).assign(slab)

        call()
        sync()
        return self.each(call)

    def ops(self) -> dict[str, Any]:
        """Reshape on the device: an eager op that does nothing."""
        import tensorflow as tf

        tensor, shape = tensors.empty(self.shape, "float32", self.card.name), memory.shape_tensor((self.nbytes // 4,))
        with tensors.placed(self.card.name):
            return self.each(lambda: [tf.raw_ops.Reshape(tensor=tensor, shape=shape) for _ in range(self.count)])

    def launch(self, *, kind: str, submit_only: bool) -> dict[str, Any]:
        """Scatter as many values of 4 KB as there are variables, in one launch; a figure for the launch."""
        count, card = self.count, self.card
        step = self.nbytes if kind == "copy" else self.nbytes // 2
        source, target, table = (
            tensors.empty((nbytes,), "uint8", card.name)
            for nbytes in (count * self.nbytes, count * step, count * TABLE_ROW_BYTES)
        )
        addresses = [tensors.address(tensor, card.name) for tensor in (source, target, table)]
        elements = self.nbytes if kind == "copy" else self.nbytes // 4
        rows = np.array([(i * elements, i * elements, elements) for i in range(count)], np.int64)
        launch = Scatter(
            source=addresses[0],
            source_nbytes=count * self.nbytes,
            destination=addresses[1],
            destination_nbytes=count * step,
            table=addresses[2],
            rows=count,
            longest=elements,
            kind=kind,  # type: ignore[arg-type]
        )
        with leased(card, 1, max(count * self.nbytes, rows.nbytes)) as (lease,), opened(card) as stream:
            # Zeros are valid values of every dtype. The table is uploaded after them.
            lease.memory[:] = 0
            self._upload(stream, addresses[0], lease.address, count * self.nbytes)
            lease.memory[: rows.nbytes].view(np.int64)[:] = rows.reshape(-1)
            self._upload(stream, addresses[2], lease.address, rows.nbytes)
            submitted: list[float] = []
            on_device: list[float] = []
            for _ in range(self.repeats + 1):
                with stream:
                    first = stream.record(timed=True)
                    begin = time.perf_counter()
                    stream.scatter(launch)
                    submitted.append(time.perf_counter() - begin)
                    last = stream.record(timed=True)
                first.wait()
                last.wait()
                on_device.append(last.seconds_since(first))
        runs = submitted if submit_only else on_device
        # The first one compiles.
        return {"seconds": statistics.median(runs[1:]), "runs": runs[1:], "first": runs[0]}

    @staticmethod
    def _upload(stream: Any, address: int, source: int, nbytes: int) -> None:
        with stream:
            stream.copy(address, source, nbytes)
            mark = stream.record()
        mark.wait()


def measure_costs(card: Card, steps: Steps, *, repeats: int = 5, variables: int | None = None) -> list[dict[str, Any]]:
    """Measure all steps.

    Returns
    -------
    list of dict
        ``step``, ``constant`` (its name in ``planning/costs.py``, where it has one) with ``planned`` seconds, and
        ``seconds``, or an error.
    """
    made: list[Costs] = []
    count = variables or VARIABLES

    def make() -> dict[str, Any]:
        made.append(Costs(card, variables=count, repeats=repeats))
        return {}

    failed = steps.run("costs: making variables", make)
    if failed:
        return [{"step": "variables", "constant": "", **failed}]
    (measure,) = made
    plan: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
        ("assignment of a device tensor", "ASSIGN", measure.assign),
        ("Empty", "", measure.empty),
        ("to_dlpack", "", measure.address),
        ("Empty and to_dlpack", "ALLOCATE", measure.allocate),
        ("an eager op (Reshape)", "OP", measure.ops),
        ("split, one shape, a variable", "", measure.split),
        ("split, many shapes, a variable", "", measure.split_runs),
        ("function, first call, a variable", "FUNCTION_MAKE", measure.function_make),
        ("function, later call, a variable", "FUNCTION_CALL", measure.function_call),
        ("copy of 4 KB", "", lambda: measure.copy(fences=False)),
        ("copy of 4 KB and fence", "", lambda: measure.copy(fences=True)),
        ("launch of scatter, submitted", "", lambda: measure.launch(kind="copy", submit_only=True)),
        (
            f"scatter of {count} x 4 KB, on device",
            "",
            lambda: measure.launch(kind="copy", submit_only=False),
        ),
        ("the same, cast to bfloat16", "", lambda: measure.launch(kind="bfloat16", submit_only=False)),
    ]
    rows = []
    for name, constant, action in plan:
        known = {"planned": getattr(costs, constant)} if constant else {}
        rows.append({"step": name, "constant": constant, **known, **steps.run(f"costs: {name}", action)})
    return rows


def rows_of(found: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return costs as cells of ``HEAD``."""
    return [
        (
            row["step"],
            row["constant"],
            "FAILED" if "error" in row else f"{row['seconds'] * 1e6:.2f}",
            f"{row['planned'] * 1e6:g}" if "planned" in row else "",
            str(len(row.get("runs", ()))),
        )
        for row in found
    ]
