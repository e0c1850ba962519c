"""The least host memory that a load takes, and the error if that is more than it may take."""

from __future__ import annotations

from collections.abc import Collection

from fastassign.errors import Budget
from fastassign.matching.assignment import Matching
from fastassign.planning.ring_budget import MIN_SLOT_BYTES
from fastassign.planning.routes import Placement

TOGETHER = "all tensors together, which are read before the first is assigned"


def copied_bytes(placements: Collection[Placement]) -> int:
    """Return the bytes that the library's own assign takes: two copies of a value, one variable at a time."""
    return max((2 * p.nbytes for p in placements if p.route == "assign"), default=0)


def hook_bytes(matching: Matching) -> int:
    """Return the bytes that hooks and conversions take; they run one by one."""
    hooks = [sum(record.nbytes for record in hook.records.values()) for hook in matching.hooks]
    converted = [conversion.staged_bytes for conversion in matching.conversions.values()]
    return max(*hooks, *converted, 0, 0)


def together_bytes(placements: Collection[Placement], matching: Matching, copied: int) -> int:
    """Return the bytes that a load takes, slots aside, if it reads everything before the first variable is assigned.

    Parameters
    ----------
    placements : collection of Placement
        All variables.
    matching : Matching
        The hooks and conversions.
    copied : int
        Bytes that the library's own assign takes for copies.
    """
    hooks = sum(record.nbytes for record in matching.hook_records)
    # Of conversions: all results, and the arrays that one of them is made from. Those are freed before the library
    # copies.
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
    """Check that a load fits, with one slot of the smallest size for each device.

    Returns
    -------
    int
        The least bytes that it takes beside the slots; for an atomic load all bytes beside them.

    Raises
    ------
    Budget
        The load does not fit into ``limit`` bytes.
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
    uses, tensor = [], None
    if library and library == beside:
        uses = ["the weights that go through the library's own code, or are converted"]
    elif beside:
        uses = ["the largest tensor"]
        tensor = max(placements, key=lambda p: p.staged_bytes).assignment.record.key
    if slots:
        uses.append("the slots that copies to devices go through")
    raise over_budget(beside + slots, limit, ", and ".join(uses), tensor)


def beside_bytes(placements: Collection[Placement], matching: Matching, copied: int) -> int:
    """Return the least bytes that a load takes, slots aside, if it assigns while it reads.

    Parameters
    ----------
    placements, matching, copied
        As for ``together_bytes``.
    """
    # Hooks and conversions run before the rest is read; slots exist all the time.
    return max(copied + max((p.staged_bytes for p in placements), default=0), hook_bytes(matching))


def over_budget(least: int, limit: int, use: str, tensor: str | None = None) -> Budget:
    """Return the error for a load that needs more than it may take.

    Parameters
    ----------
    least : int
        The least ``max_staging_bytes`` with which the load works.
    limit : int
        The ``max_staging_bytes`` that it was given.
    use : str
        The use of the memory, in words.
    tensor : str, optional
        The tensor that needs it.
    """
    return Budget(
        f"the load needs {least} bytes of host memory for {use}, but max_staging_bytes is {limit}",
        tensor=tensor,
        hint=f"LoadOptions(max_staging_bytes={least}) is the least that works",
    )
