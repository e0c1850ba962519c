"""Notices when a library has been imported, by any code at any time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class PostImport(MetaPathFinder):
    """Calls a function when one of some packages has been imported.

    Parameters
    ----------
    names : collection of str
        The packages.
    then : callable
        Gets the name of the package, in the thread that imports it, before the import statement returns.
    """

    def __init__(self, names: Collection[str], then: Callable[[str], None]) -> None:
        self._names, self._then = names, then
        self._thread = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the other finders find the module, and wrap its loader."""
        # Another library's finder may ask all finders, this one included.
        if fullname not in self._names or getattr(self._thread, "busy", False):
            return None
        self._thread.busy = True
        try:
            specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
            found = next((spec for spec in specs if spec is not None), None)
        finally:
            self._thread.busy = False
        if found is not None and found.loader is not None:
            found.loader = _Announcing(found.loader, self._then)
        return found


class _Announcing(Loader):
    """A loader that calls a function when it is done."""

    def __init__(self, loader: Loader, then: Callable[[str], None]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module must look as if the library's own loader had loaded it.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then(module.__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
