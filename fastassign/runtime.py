"""The parts of the process that a load works with: drivers, memory, and how bytes are read."""

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
    """What a load is given to work with; nothing below reaches for it by itself.

    Attributes
    ----------
    find_driver : callable
        Returns the driver of the devices that values are copied to, or what is missing.
    staging : StagingPool
        Host memory that devices copy from.
    arenas : ArenaPool
        Host memory that sessions of TensorFlow 1 are fed from.
    make_source : callable
        Gets the source of a load, an open origin or a file past the page cache, and returns the one to read by: the
        same, unless faults are put in between.
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


# One for the process: the memory that one load gives back serves the next, whoever asks for it.
_PROCESS = Runtime(find_driver=find_driver, staging=StagingPool(), arenas=ArenaPool(), make_source=_itself)


def process_runtime() -> Runtime:
    """Return the runtime that all loads of this process share."""
    return _PROCESS
