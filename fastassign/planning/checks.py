"""Checks of a schedule before anything is read: tensors that share bytes, routes to devices that no value can take."""

from __future__ import annotations

from collections.abc import Sequence

from fastassign.errors import Refused, Unsupported
from fastassign.matching.assignment import Matching
from fastassign.options import LoadOptions
from fastassign.planning.batches import Batch
from fastassign.planning.coalesce import overlapping
from fastassign.planning.lanes import Devices

_FOR = {
    "direct": "it is for plain variables on a GPU, of dtypes whose tensors live there",
    "fused": "it is for plain variables on a GPU, of floating-point dtypes, whose values fit into a slot (slot_bytes)",
}


def check_overlaps(matching: Matching) -> None:
    """Raise ``Refused`` if two tensors of a load share bytes of the file."""
    records = {assignment.record.key: assignment.record for assignment in matching.assignments.values()}
    for conversion in matching.conversions.values():
        records.update((record.key, record) for record in conversion.recipe.records)
    pair = overlapping([(extent, record.key) for record in records.values() for extent in record.extents])
    if pair is not None:
        raise Refused(
            f"the datasets {pair[0]} and {pair[1]} share bytes of the file",
            rule="overlap",
            option='LoadOptions(allow={"overlap"})',
            tensor=pair[1],
        )


def check_choice(
    batches: Sequence[Batch],
    options: LoadOptions,
    devices: Devices,
    fallbacks: Sequence[str],
) -> None:
    """Raise ``Unsupported`` if no value takes the route asked for, or a device can't run the kernels that it needs."""
    taken = {batch.route for batch in batches if batch.lane}
    if options.device.route in {"direct", "fused"} and batches and options.device.route not in taken:
        raise Unsupported(
            f'no value of this load can take the route "{options.device.route}"',
            hint="; ".join(fallbacks) or _FOR[options.device.route],
        )
    scattered = {batch.lane for batch in batches if batch.cut == "scatter"}
    missing = {devices.reached[device].kernels_missing for device in scattered} - {""}
    if missing:
        raise Unsupported('cut="scatter" needs kernels on the device', hint="; ".join(sorted(missing)))
