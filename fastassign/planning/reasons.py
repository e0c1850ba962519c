"""The reasons, in words, for the routes that values take to devices, and the obstacles to better ones."""

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
    found: dict[str, str] = {}
    fused = [batch for batch in batches if batch.lane and batch.route == "fused"]
    direct = [p for batch in batches if batch.route == "direct" for p in batch.placements]
    if fused:
        found["fused"] = _fused(fused, lanes, options, repeated=repeated)
    if direct:
        found["direct"] = _direct(direct, options)
    eager = [p for batch in batches for p in batch.placements if p.route == "eager"]
    if eager:
        found["eager"] = _eager(eager, options)
    return found


def _fused(batches: Sequence[Batch], lanes: Sequence[Lane], options: LoadOptions, *, repeated: bool) -> str:
    count = sum(len(batch.placements) for batch in batches)
    cuts = list(dict.fromkeys(batch.cut for batch in batches if batch.cut is not None))
    how = " or ".join(_CUTS[cut] for cut in cuts)
    copies = "1 copy" if len(batches) == 1 else f"{len(batches)} copies"
    text = f"{_variables(count)} in {copies}, then {how}"
    if options.device.cut != "auto":
        return f"{text}, as asked for"
    missing = {lane.device for lane in lanes if lane.kernels_missing}
    expected = {
        cut: sum(
            seconds_of(cut, variables=len(b.placements), runs=len(run_lengths(b.placements)), repeated=repeated)
            for b in batches
        )
        for cut in _CUTS
        # A way that some device can't take is not compared with the others.
        if cut != "scatter" or not any(batch.lane in missing for batch in batches)
    }
    return f"{text} (expected ms: {', '.join(f'{cut} {seconds * 1e3:.1f}' for cut, seconds in expected.items())})"


def _direct(placements: Sequence[Placement], options: LoadOptions) -> str:
    if options.device.route == "direct":
        return f"{_variables(len(placements))}, as asked for"
    large = sum(p.assignment.target.dtype in DEVICE_FUSED_DTYPES for p in placements)
    others = len(placements) - large
    texts = [f"{_variables(large)} too large to share a copy"] if large else []
    texts += [f"{_variables(others)} of dtypes that TensorFlow does not cut up on a GPU"] if others else []
    return ", ".join(texts)


def _eager(placements: Sequence[Placement], options: LoadOptions) -> str:
    if options.device.route == "eager":
        return f"{_variables(len(placements))}, as asked for"
    counts: dict[str, int] = {}
    for p in placements:
        if not p.assignment.record.extents:
            why = "whose values are made on the host, or are in memory already"
        elif p.assignment.target.dtype not in DEVICE_DTYPES:
            why = "of dtypes whose tensors TensorFlow does not make on a GPU by itself"
        else:
            why = "on a device that can't be reached"
        counts[why] = counts.get(why, 0) + 1
    return ", ".join(f"{_variables(count)} {why}" for why, count in counts.items())


def _variables(count: int) -> str:
    return "1 variable" if count == 1 else f"{count} variables"


def fallbacks(placements: Sequence[Placement], options: LoadOptions, devices: Devices) -> tuple[str, ...]:
    """Return the missing parts of the ways to devices, with their costs, each once."""
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
