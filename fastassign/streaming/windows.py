"""Windows on the batches of a load: each lane has as many batches open as its window of memory holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from fastassign.planning.batches import Batch


class Windows:
    """The waiting and the open batches of a load. Owned by one thread.

    Parameters
    ----------
    batches : sequence of Batch
        All batches.
    sizes : mapping of str to int
        Bytes that may be open at a time, by lane; ``""`` is the host. ``None`` opens all batches at once.
    """

    def __init__(self, batches: Sequence[Batch], sizes: Mapping[str, int] | None) -> None:
        self._sizes = sizes
        self._waiting: dict[str, deque[tuple[int, Batch]]] = {}
        for number, batch in enumerate(batches):
            self._waiting.setdefault(batch.lane, deque()).append((number, batch))
        self._open_bytes = dict.fromkeys(self._waiting, 0)
        self._open_count = dict.fromkeys(self._waiting, 0)

    def __bool__(self) -> bool:
        """Whether batches wait or are open."""
        return any(self._waiting.values()) or any(self._open_count.values())

    def admit(self) -> Iterator[tuple[int, Batch]]:
        """Open the batches that fit and yield them with their numbers, in the order of the file across all lanes."""
        while ready := [lane for lane, waiting in self._waiting.items() if waiting and self._fits(lane, waiting[0][1])]:
            lane = min(ready, key=lambda lane: self._waiting[lane][0][0])
            number, batch = self._waiting[lane].popleft()
            self._open_bytes[lane] += batch.window_bytes
            self._open_count[lane] += 1
            yield number, batch

    def _fits(self, lane: str, batch: Batch) -> bool:
        if self._sizes is None or not self._open_count[lane]:
            return True  # a batch larger than its window is open alone
        return self._open_bytes[lane] + batch.window_bytes <= self._sizes[lane]

    def close(self, batch: Batch) -> None:
        """Close a batch, and so make room for others."""
        self._open_bytes[batch.lane] -= batch.window_bytes
        self._open_count[batch.lane] -= 1
