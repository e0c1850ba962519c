"""Running a Python program in this process, as Python itself would: ``fastassign run``."""

from __future__ import annotations

import builtins
import io
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType


@dataclass(frozen=True, slots=True)
class Program:
    """A program and its arguments.

    Attributes
    ----------
    name : str
        The path of a script, or the name of a module.
    arguments : tuple of str
        The rest of its ``sys.argv``, after its own name.
    is_module : bool
        Whether ``name`` is that of a module, as after ``python -m``.
    """

    name: str
    arguments: tuple[str, ...] = ()
    is_module: bool = False

    def run(self) -> None:
        """Run it as ``__main__``. Exceptions and ``SystemExit`` are passed on; tracebacks omit our own frames."""
        sys.argv = [self.name, *self.arguments]
        try:
            (self._run_module if self.is_module else self._run_script)()
        except SystemExit:
            raise
        except BaseException as error:
            sys.excepthook = _without_frames(error, 2)
            raise

    def _run_module(self) -> None:
        if not _safe_path():
            sys.path[0] = os.getcwd()
        runpy.run_module(self.name, run_name="__main__", alter_sys=True)

    def _run_script(self) -> None:
        if not _safe_path():
            sys.path[0] = os.path.dirname(os.path.realpath(self.name))
        path = os.path.abspath(self.name)
        # Not by runpy, which removes the module when the script has ended: threads and exit handlers may still need it.
        module = ModuleType("__main__")
        module.__file__ = path
        module.__loader__ = SourceFileLoader("__main__", path)
        module.__dict__.update(__builtins__=builtins, __cached__=None)
        sys.modules["__main__"] = module
        with io.open_code(path) as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 - this is how a script is run


def _safe_path() -> bool:
    """Whether Python was told not to put the program's folder on the path."""
    return bool(getattr(sys.flags, "safe_path", False))


def _without_frames(
    error: BaseException, count: int
) -> Callable[[type[BaseException], BaseException, TracebackType | None], object]:
    """Return a ``sys.excepthook`` that omits the outermost frames of a traceback, which are ours."""
    shown = error.__traceback__
    for _ in range(count):
        shown = shown and shown.tb_next
    hook = sys.excepthook

    def show(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if value is error:
            value, traceback = value.with_traceback(shown), shown
        hook(kind, value, traceback)

    return show
