"""The parts of the process that a load works with: drivers, memory, and sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastassign.devices.discover import find_driver
from fastassign.devices.driver import Driver, Missing
from fastassign.devices.staging import StagingPool
from fastassign.streaming.buffers import ArenaPool
from fastassign.streaming.source import Source


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Runtime:
    """The parts of the process that a load works with. They are passed in; nothing reaches for them by itself.

    Attributes
    ----------
    find_driver : callable
        Returns the driver of the devices, or ``Missing`` with the reason why there is none.
    staging : StagingPool
        The host memory of slots, which devices copy from.
    arenas : ArenaPool
        The host memory that TensorFlow 1 sessions are fed from.
    make_source : callable
        Gets the source of a load (an open origin, or a file past the page cache) and returns the source to read from:
        the same one, unless a test puts faults in between.
    """

    find_driver: Callable[[], Driver | Missing]
    staging: StagingPool
    arenas: ArenaPool
    make_source: Callable[[Source], Source]

    def release(self) -> None:
        """Give idle host memory back to the system."""
        self.arenas.release()
        self.staging.release()


def _itself(source: Source) -> Source:
    return source


# One for the whole process, so that the memory that one load gives back serves the next.
_PROCESS = Runtime(find_driver=find_driver, staging=StagingPool(), arenas=ArenaPool(), make_source=_itself)


def process_runtime() -> Runtime:
    """Return the runtime that all loads of this process share."""
    return _PROCESS
