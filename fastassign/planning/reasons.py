"""Why values go to devices the way they do, in words, and what stands in the way of a better one."""

from __future__ import annotations

from collections.abc import Sequence

from fastassign.options import LoadOptions
from fastassign.planning.batches import Batch, run_lengths
from fastassign.planning.costs import Cut, seconds_of
from fastassign.planning.lanes import Device, Devices, Lane
from fastassign.planning.routes import DEVICE_DTYPES, DEVICE_FUSED_DTYPES, Placement, is_reachable

_CUTS: dict[Cut, str] = {
    "split": "eager ops cut it up",
    "function": "one function cuts it up",
    "scatter": "a kernel copies each value out of it",
}


def reasons(batches: Sequence[Batch], lanes: Sequence[Lane], options: LoadOptions, *, repeated: bool) -> dict[str, str]:
    """Return a sentence for each route to a device that a load takes."""
    said: dict[str, str] = {}
    fused = [batch for batch in batches if batch.lane and batch.route == "fused"]
    direct = [p for batch in batches if batch.route == "direct" for p in batch.placements]
    if fused:
        said["fused"] = _fused(fused, lanes, options, repeated=repeated)
    if direct:
        said["direct"] = _direct(direct, options)
    eager = [p for batch in batches for p in batch.placements if p.route == "eager"]
    if eager:
        said["eager"] = _eager(eager, options)
    return said


def _fused(batches: Sequence[Batch], lanes: Sequence[Lane], options: LoadOptions, *, repeated: bool) -> str:
    count = sum(len(batch.placements) for batch in batches)
    cuts = list(dict.fromkeys(batch.cut for batch in batches if batch.cut is not None))
    how = " or ".join(_CUTS[cut] for cut in cuts)
    text = f"{count} variables in {len(batches)} copies, then {how}"
    if options.device.cut != "auto":
        return f"{text}, as asked for"
    missing = {lane.device for lane in lanes if lane.kernels_missing}
    expected = {
        cut: sum(
            seconds_of(cut, variables=len(b.placements), runs=len(run_lengths(b.placements)), repeated=repeated)
            for b in batches
        )
        for cut in _CUTS
        # What some device can't do is not weighed against the rest.
        if cut != "scatter" or not any(batch.lane in missing for batch in batches)
    }
    return f"{text} (expected ms: {', '.join(f'{cut} {seconds * 1e3:.1f}' for cut, seconds in expected.items())})"


def _direct(placements: Sequence[Placement], options: LoadOptions) -> str:
    if options.device.route == "direct":
        return f"{len(placements)} variables as asked for"
    large = sum(p.assignment.target.dtype in DEVICE_FUSED_DTYPES for p in placements)
    others = len(placements) - large
    texts = [f"{large} variables too large to share one copy"] if large else []
    texts += [f"{others} variables of dtypes that TensorFlow does not cut up on a GPU"] if others else []
    return ", ".join(texts)


def _eager(placements: Sequence[Placement], options: LoadOptions) -> str:
    if options.device.route == "eager":
        return f"{len(placements)} variables as asked for"
    counts: dict[str, int] = {}
    for p in placements:
        if not p.assignment.record.extents:
            why = "whose values are made on the host, or are in memory"
        elif p.assignment.target.dtype not in DEVICE_DTYPES:
            why = "of dtypes whose tensors TensorFlow does not make on a GPU by itself"
        else:
            why = "on a device that can't be reached"
        counts[why] = counts.get(why, 0) + 1
    return ", ".join(f"{count} variables {why}" for why, count in counts.items())


def fallbacks(placements: Sequence[Placement], options: LoadOptions, devices: Devices) -> tuple[str, ...]:
    """Return what is missing on the way to the devices that values go to, each once."""
    texts: dict[str, None] = {}
    for p in placements:
        if p.route not in {"eager", "assign"}:
            continue
        name = p.assignment.target.device
        if name in devices.fallbacks:
            texts[devices.fallbacks[name]] = None
        device = devices.reached.get(name)
        if device is not None and device.kernels_missing and is_reachable(p.assignment, options, Device(name)):
            texts[f"{name}: {device.kernels_missing}: values are cast on the host, one variable at a time"] = None
    return tuple(texts)
