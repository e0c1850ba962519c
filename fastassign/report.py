"""The outcome of a load."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fastassign.text import clipped, fields, line_width, printable


@dataclass(frozen=True, slots=True)
class Report:
    """What a load did. ``print`` it.

    Attributes
    ----------
    file : str
        The path of the file.
    assigned : int
        How many variables got a value.
    cast : tuple of str
        Variables whose dtype differs from the file's, with both dtypes.
    skipped : tuple of str
        Variables that ``skip_mismatch``, ``include`` or ``exclude`` left as they were, and why.
    repaired : tuple of str
        Weights that went where their names in the file say, not to the position that stock would have used.
    converted : tuple of str
        Variables whose values were made from arrays of another layout or shape, and how (``docs/conversions.md``).
    missing : tuple of str
        Variables of the model that have no value in the file.
    unexpected : tuple of str
        Weights of the file that have no variable in the model.
    fallbacks : tuple of str
        Reasons why values could not go to a device the fast way: what is missing, what that costs, what to do.
    upgraded : tuple of str
        ``load_model`` only: changes to the saved configuration that the installed library needs.
    optimizer_left : tuple of str
        ``load_model`` only: saved tensors of the optimizer that have no place in the one that was built.
    nbytes : int
        Bytes that were read, after decoding.
    seconds : dict of str to float
        Seconds of each stage: ``index``, ``match``, ``plan``; then ``execute``, and of that ``wait`` (for reads) and
        ``assign`` (in TensorFlow); and ``total``.
    routes : dict of str to int
        How many variables took each route.
    index_cached : bool
        Whether the index came from the cache.
    plan : str
        ``"made"``; for a ``Loader`` also ``"kept"``, if the previous load's plan was used again, or ``"made again: "``
        with the reason.
    limit_gbps : float or None
        The warm limit in GB/s (1e9 bytes), if it was measured, as ``fastassign demo`` does: the rate at which this
        machine reads the same bytes from the page cache into memory that was used before.
    """

    file: str
    assigned: int
    cast: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    upgraded: tuple[str, ...] = ()
    optimizer_left: tuple[str, ...] = ()
    nbytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    routes: dict[str, int] = field(default_factory=dict)
    index_cached: bool = False
    plan: str = "made"
    limit_gbps: float | None = None

    @property
    def gbps(self) -> float:
        """GB/s (1e9 bytes per second) from the call to the last assignment."""
        total = self.seconds.get("total", 0.0)
        return self.nbytes / total / 1e9 if total else 0.0

    @property
    def share_of_limit(self) -> float | None:
        """The rate as a share of the warm limit, if that was measured."""
        return None if not self.limit_gbps else self.gbps / self.limit_gbps

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {**asdict(self), "gbps": self.gbps, "share_of_limit": self.share_of_limit}

    def __str__(self) -> str:
        """Draw the report as a table, as wide as the terminal (80 columns elsewhere)."""
        return f"{clipped(printable(self.file), line_width())}\n{fields(self._fields())}"

    def _fields(self) -> list[tuple[str, list[str]]]:
        routes = ", ".join(f"{route} {count}" for route, count in self.routes.items())
        found = [("assigned", [f"{self.assigned} variables ({routes})"]), ("bytes", [f"{self.nbytes:,}"])]
        of_few_loads = ("converted", "fallbacks", "upgraded", "optimizer_left")
        for label in ("cast", "skipped", "repaired", "missing", "unexpected", *of_few_loads):
            items: tuple[str, ...] = getattr(self, label)
            if not items and label in of_few_loads:
                continue
            more = [f"and {len(items) - 5} more"] if len(items) > 5 else []
            found.append((label.replace("_", " "), [*items[:5], *more] or ["none"]))
        stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in self.seconds.items())
        found.append(("seconds", [stages + (" (index from the cache)" if self.index_cached else "")]))
        if self.plan != "made":
            found.append(("plan", [self.plan]))
        share = f", {self.share_of_limit:.0%} of the warm limit" if self.share_of_limit is not None else ""
        found.append(("rate", [f"{self.gbps:.2f} GB/s{share}"]))
        return found
