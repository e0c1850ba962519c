"""``accelerate``, ``install`` and ``uninstall``: switch patches of Keras 3 and tf_keras on and off.

The first holder applies the patches, and the last one to leave undoes them. The very objects that were there before are
put back.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastassign.options import LoadOptions
from fastassign.patching import redirect
from fastassign.patching.imports import PostImport
from fastassign.patching.redirect import Holder, NotCovered, log
from fastassign.patching.seams import OPTIONAL, SEAMS, Library


@dataclass(frozen=True, slots=True, eq=False)
class _Patch:
    """A function, and its replacement."""

    owner: Any
    name: str
    stock: Any
    ours: Any

    def apply(self, modules: list[Any]) -> None:
        """Bind ours, everywhere in the library."""
        self._rebind(self.stock, self.ours, modules)

    def undo(self, modules: list[Any]) -> None:
        """Bind stock's again, also where ours was bound in the meantime."""
        self._rebind(self.ours, self.stock, modules)
        if vars(self.owner)[self.name] is not self.stock:
            log.warning("%s was replaced by other code in the meantime, and is left as it is", self.name)

    def _rebind(self, old: Any, new: Any, modules: list[Any]) -> None:
        for owner in [self.owner] if isinstance(self.owner, type) else modules:
            if getattr(owner, "__dict__", {}).get(self.name) is old:
                setattr(owner, self.name, new)


def _modules_of(library: Library) -> list[Any]:
    """Return the modules of a library, public ones and others."""
    inside = f"{library}."
    return [module for name, module in list(sys.modules.items()) if name.startswith(inside)]


# Never held during an import, which may wait for a thread that waits for this lock.
_lock = threading.RLock()
_patches: dict[Library, list[_Patch]] = {}
_installed: Holder | None = None


@contextmanager
def accelerate(*, options: LoadOptions | None = None) -> Iterator[None]:
    """Let Keras' own calls go through fastassign in this block.

    The calls are those of ``install``. The block affects the whole process, so other threads' calls go through
    fastassign, too. Blocks may be nested and may overlap, in one thread or several, also with ``install``; when the
    last is left, everything is as it was before.

    Parameters
    ----------
    options : LoadOptions, optional
        The options of the loads. If several blocks are active at once, the newest options count.

    Examples
    --------
    >>> import fastassign as fa
    >>> with fa.accelerate():  # doctest: +SKIP
    ...     model.load_weights("model.weights.h5")
    """
    holder = Holder(options)
    _hold(holder)
    try:
        _patch_imported()
        yield
    finally:
        _release(holder)


def install(*, options: LoadOptions | None = None) -> None:
    """Let Keras' own calls go through fastassign from now on, in the whole process.

    For Keras 3 on TensorFlow and for tf_keras, these calls are ``Model.load_weights`` and ``load_model`` (``.keras``
    and ``.h5``: the library builds the model, fastassign loads its weights), ``keras.saving.load_weights`` and
    ``tf_keras.backend.batch_set_value``. Their arguments and results stay the same. Calls that fastassign does not
    cover are handled by the library itself. The logger ``fastassign`` says so at level INFO, and names the calls that
    fastassign handled at level DEBUG. Errors are those of ``fastassign.load_weights``, including refusals that the
    library does not have (``docs/policy.md``).

    The libraries may be imported before or after; this function imports none of them. Processes that are started later
    do not inherit the patches, unless they are forked.

    Parameters
    ----------
    options : LoadOptions, optional
        The options of the loads. A second call changes the options, and nothing else.

    See Also
    --------
    uninstall : undoes it, however often it was called.
    """
    global _installed  # noqa: PLW0603 - there is one process
    holder = Holder(options)
    with _lock:
        before, _installed = _installed, holder
        _hold(holder)
        _release(before)
    try:
        _patch_imported()
    except BaseException:
        with _lock:
            if _installed is holder:
                _installed = before
                _hold(before)
            _release(holder)
        raise


def uninstall() -> None:
    """Undo ``install``; do nothing if it was not called. Active blocks of ``accelerate`` keep their effect."""
    global _installed  # noqa: PLW0603
    with _lock:
        _release(_installed)
        _installed = None


def _hold(holder: Holder | None) -> None:
    with _lock:
        if holder is not None:
            redirect.holders = (*redirect.holders, holder)
            if _finder not in sys.meta_path:
                sys.meta_path.insert(0, _finder)


def _release(holder: Holder | None) -> None:
    with _lock:
        redirect.holders = tuple(other for other in redirect.holders if other is not holder)
        if redirect.holders:
            return
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        for library, patches in _patches.items():
            modules = _modules_of(library)
            for patch in reversed(patches):
                patch.undo(modules)
        _patches.clear()


def _patch_imported() -> None:
    """Patch the libraries that are imported already; the others are patched when they are imported."""
    for library in SEAMS:
        if sys.modules.get(library) is not None:
            # Waits if another thread is importing it.
            importlib.import_module(library)
            _patch(library)


def _patch(library: str) -> None:
    """Apply the patches of a library, all or none."""
    with _lock:
        name: Library = "keras" if library == "keras" else "tf_keras"
        if not redirect.holders or name in _patches:
            return
        done: list[_Patch] = []
        modules = _modules_of(name)
        try:
            for patch in _prepare(name):
                done.append(patch)
                patch.apply(modules)
        except BaseException:
            for patch in reversed(done):
                patch.undo(modules)
            raise
        _patches[name] = done


def _prepare(library: Library) -> Iterator[_Patch]:
    version = str(getattr(sys.modules[library], "__version__", "?"))
    if library == "keras" and not version.startswith("3."):
        log.warning("Keras %s is not patched: fastassign supports Keras 3 and tf_keras", version)
        return
    for seam in SEAMS[library]:
        try:
            owner, name, stock = seam.find()
            yield _Patch(owner, name, stock, seam.make(stock))
        except (LookupError, AttributeError, NotCovered) as error:
            if seam.name not in OPTIONAL:
                log.warning("%s.%s of %s %s is not patched: %s", seam.module, seam.name, library, version, error)


_finder = PostImport(tuple(SEAMS), _patch)
