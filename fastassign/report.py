"""What a load did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fastassign.text import printable


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a load.

    Attributes
    ----------
    file : str
        The file.
    assigned : int
        Variables that got a value.
    cast : tuple of str
        Variables whose dtype is not the file's, with both dtypes.
    skipped : tuple of str
        What ``skip_mismatch``, ``include`` or ``exclude`` left as it was, and why.
    repaired : tuple of str
        Where the names in the file overruled the position, which stock would have used.
    converted : tuple of str
        Variables whose values were made of arrays in another layout or shape, and how (``docs/conversions.md``).
    missing : tuple of str
        Variables of the model that got no value.
    unexpected : tuple of str
        Weights of the file that no variable took.
    fallbacks : tuple of str
        Where values could not go to a device by the fast way: what is missing, what that costs, what to do.
    upgraded : tuple of str
        Of ``load_model``: what was changed in the saved configuration for the running library.
    optimizer_left : tuple of str
        Of ``load_model``: tensors of the optimizer that have no place in the one that was built.
    nbytes : int
        Bytes read, decoded.
    seconds : dict of str to float
        By stage: ``index``, ``match``, ``plan``; of the execution ``wait`` (for reads), ``assign`` (in TensorFlow)
        and ``execute`` (all of it); and ``total``.
    routes : dict of str to int
        Variables by route.
    index_cached : bool
        Whether the index came from the cache.
    plan : str
        ``"made"``; of a ``Loader`` also ``"kept"``, where the plan of the load before was used again, or
        ``"made again: "`` with the reason.
    limit_gbps : float or None
        The rate of the same machine reading the same bytes from the page cache, where it was measured
        (``fastassign bench`` does), in GB/s (1e9 bytes).
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
        """The rate as a share of the measured limit, where that is known."""
        return None if not self.limit_gbps else self.gbps / self.limit_gbps

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data."""
        return {**asdict(self), "gbps": self.gbps, "share_of_limit": self.share_of_limit}

    def __str__(self) -> str:
        """Draw the report as a table."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title=printable(self.file), title_justify="left", show_header=False)
        for label, value in self._lines():
            table.add_row(label, value)
        # Plain text: names may hold what rich takes for markup, "[/b]" or ":x:".
        console = Console(
            width=120, color_system=None, force_terminal=False, markup=False, emoji=False, highlight=False
        )
        with console.capture() as capture:
            console.print(table)
        return capture.get()

    def _lines(self) -> list[tuple[str, str]]:
        routes = ", ".join(f"{route} {count}" for route, count in self.routes.items())
        lines = [("assigned", f"{self.assigned} variables ({routes})"), ("bytes", f"{self.nbytes:,}")]
        of_few_loads = ("converted", "fallbacks", "upgraded", "optimizer_left")
        for label in ("cast", "skipped", "repaired", "missing", "unexpected", *of_few_loads):
            items: tuple[str, ...] = getattr(self, label)
            if not items and label in of_few_loads:
                continue
            shown = "\n".join(map(printable, items[:5])) + (f"\nand {len(items) - 5} more" if len(items) > 5 else "")
            lines.append((label.replace("_", " "), shown if items else "none"))
        stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in self.seconds.items())
        lines.append(("seconds", stages + (" (index from the cache)" if self.index_cached else "")))
        if self.plan != "made":
            lines.append(("plan", self.plan))
        share = f", {self.share_of_limit:.0%} of the limit" if self.share_of_limit is not None else ""
        lines.append(("rate", f"{self.gbps:.2f} GB/s{share}"))
        return lines
