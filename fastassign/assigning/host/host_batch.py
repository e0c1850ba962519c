"""Open batches whose memory is on the host."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

from fastassign.assigning.open_batch import Decode, OpenBatch, scattered
from fastassign.streaming.source import Source, fill


class HostBatch(OpenBatch):
    """An open batch whose memory is on the host: the file is read straight into it."""

    __slots__ = ()

    def jobs(self, source: Source, gap: memoryview, decode: Decode) -> Iterator[Callable[[], None]]:  # noqa: ARG002
        """Yield a job for each read; see ``OpenBatch.jobs``."""
        views = self._views()
        for read in self.batch.reads:
            yield partial(fill, source, scattered(read, views, gap), read.offset, read.nbytes)

    @abstractmethod
    def _views(self) -> list[memoryview]:
        """Return the memory of each value as bytes."""
