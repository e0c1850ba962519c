"""Steps of a measurement, each of which may fail without stopping the others."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

Tell = Callable[[str], None]


class Steps:
    """Runs steps one after the other, because time on a machine with a GPU is too rare to stop at the first failure.

    Parameters
    ----------
    tell : callable
        Gets a line before each step, and one for each that fails.
    """

    def __init__(self, tell: Tell = lambda _: None) -> None:
        self._tell, self._begin = tell, time.perf_counter()

    def tell(self, line: str) -> None:
        """Pass on a line, with the seconds since the beginning."""
        self._tell(f"[{time.perf_counter() - self._begin:6.1f} s] {line}")

    def run(self, name: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a step and return its figures; if it fails, its error under the key ``error``."""
        self.tell(name)
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - the next step is done all the same
            text = f"{type(error).__name__}: {error}"
            self.tell(f"{name} FAILED: {text}")
            self._tell("".join(traceback.format_exception(error)[-6:]))
            return {"error": text[:2000]}
