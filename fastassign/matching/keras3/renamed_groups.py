"""A Keras 3 weights file seen under other paths."""

from __future__ import annotations

from fastassign.catalog.keras_v3 import OLD_LAYERS, VariableGroups
from fastassign.catalog.records import Contents
from fastassign.errors import Mismatch
from fastassign.matching.selection import Selection, leading_parts


class RenamedGroups(VariableGroups):
    """Finds groups of variables by the paths that their datasets get.

    Parameters
    ----------
    contents : Contents
        The file.
    selection : Selection
        Gives each its new path.
    old_layers : bool
        As for ``VariableGroups``.

    Raises
    ------
    Mismatch
        Two datasets would get the same path.
    """

    def __init__(self, contents: Contents, selection: Selection, *, old_layers: bool) -> None:
        super().__init__(contents, old_layers=old_layers)
        self._keys: dict[str, dict[str, str]] = {}
        # tf_keras requires the model's own group, which is there even if it is empty.
        self._paths = {path for path in ("vars",) if path in contents.groups}
        for key in (*contents.records, *contents.refusals):
            path = key.replace(OLD_LAYERS, "layers") if old_layers else key
            new = selection.new_path(path, key)
            if new is None:
                continue
            group, _, name = new.rpartition("/")
            before = self._keys.setdefault(group, {}).setdefault(name, key)
            if before != key:
                raise Mismatch(f"rename turns both {before} and {key} of the file into {new}", tensor=key)
            self._paths.update(leading_parts(group))

    def find(self, path: str) -> str | None:
        """Return the new path of the group ``vars`` below ``path``, or ``None``."""
        group = f"{path}/vars" if path else "vars"
        return group if group in self._keys else None

    def names(self, group: str) -> tuple[str, ...]:
        """Return the names in a group of variables."""
        return tuple(self._keys[group])

    def key(self, group: str, name: str) -> str:
        """Return the key in the file of a variable of a group."""
        return self._keys[group].get(name, f"{group}/{name}")

    def has_path(self, path: str) -> bool:
        """Whether anything is at ``path`` now."""
        return path in self._paths
