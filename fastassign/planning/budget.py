"""How much host memory a load takes at least, and the error where that is more than it may."""

from __future__ import annotations

from collections.abc import Collection

from fastassign.errors import Budget
from fastassign.matching.assignment import Matching
from fastassign.planning.ring_budget import MIN_SLOT_BYTES
from fastassign.planning.routes import Placement

TOGETHER = "all tensors together, which are read before the first is assigned"


def copied_bytes(placements: Collection[Placement]) -> int:
    """Return what the library's own assign takes: two copies of a value, one variable at a time."""
    return max((2 * p.nbytes for p in placements if p.route == "assign"), default=0)


def hook_bytes(matching: Matching) -> int:
    """Return what objects take that load themselves, and values that are converted: both go one by one."""
    hooks = [sum(record.nbytes for record in hook.records.values()) for hook in matching.hooks]
    converted = [conversion.staged_bytes for conversion in matching.conversions.values()]
    return max(*hooks, *converted, 0, 0)


def together_bytes(placements: Collection[Placement], matching: Matching, copied: int) -> int:
    """Return what everything takes that is read before the first variable is assigned.

    Parameters
    ----------
    placements : collection of Placement
        All variables.
    matching : Matching
        What goes through the library's own code, or is converted.
    copied : int
        What the library's own assign takes for copies.
    """
    hooks = sum(record.nbytes for hook in matching.hooks for record in hook.records.values())
    # Of what is converted, all results, and the sources of one; they are gone before the library copies.
    conversions = matching.conversions.values()
    results = sum(each.target.nbytes for each in conversions)
    sources = max((each.staged_bytes - each.target.nbytes for each in conversions), default=0)
    return sum(p.staged_bytes for p in placements) + hooks + results + max(copied, sources)


def check_budget(
    matching: Matching,
    placements: Collection[Placement],
    limit: int,
    *,
    copied: int,
    atomic: bool,
) -> int:
    """Check that a load fits, with the smallest of slots for each device on the way there.

    Returns
    -------
    int
        What it takes at least beside the slots on the way to devices; for an atomic load all that it takes there.

    Raises
    ------
    Budget
        It does not fit into ``limit`` bytes.
    """
    slots = len({p.lane for p in placements if p.lane}) * MIN_SLOT_BYTES
    if atomic:
        beside = together_bytes(placements, matching, copied)
        if beside + slots > limit:
            raise over_budget(beside + slots, limit, f"{TOGETHER} (atomic=True)")
        return beside
    library, beside = hook_bytes(matching), beside_bytes(placements, matching, copied)
    if beside + slots <= limit:
        return beside
    whats, tensor = [], None
    if library and library == beside:
        whats = ["the weights that go through the library's own code, or are converted"]
    elif beside:
        whats = ["the largest tensor"]
        tensor = max(placements, key=lambda p: p.staged_bytes).assignment.record.key
    if slots:
        whats.append("the slots that copies to devices go through")
    raise over_budget(beside + slots, limit, ", and ".join(whats), tensor)


def beside_bytes(placements: Collection[Placement], matching: Matching, copied: int) -> int:
    """Return what a load that assigns as it reads takes at least, slots aside.

    Parameters
    ----------
    placements, matching, copied
        As for ``together_bytes``.
    """
    # Objects load themselves, and values are converted, before the rest is read; slots are there all the time.
    return max(copied + max((p.staged_bytes for p in placements), default=0), hook_bytes(matching))


def over_budget(least: int, limit: int, what: str, tensor: str | None = None) -> Budget:
    """Return the error of a load that needs more than it may take.

    Parameters
    ----------
    least : int
        The least ``max_staging_bytes`` with which it works.
    limit : int
        What it is.
    what : str
        What the memory is for.
    tensor : str, optional
        The tensor that it is for.
    """
    return Budget(
        f"the load needs {least} bytes of host memory for {what}, max_staging_bytes is {limit}",
        tensor=tensor,
        hint=f"LoadOptions(max_staging_bytes={least}) is the least that works",
    )
