"""The layout of Keras 3 weight files (``.weights.h5``, and the same inside ``.keras``).

Each object that owns variables has a group ``<path>/vars`` with datasets ``0``, ``1``, ...; ``path`` is the chain of
attributes and containers that Keras' own walk takes from the model to the object (source: ``saving_lib.py`` of Keras 3
and of tf_keras).
"""

from __future__ import annotations

from fastassign.catalog import policy
from fastassign.catalog.records import Contents

# TensorFlow 2.12 and 2.13 wrote this in place of "layers". Keras 3 still reads it; tf_keras does not.
OLD_LAYERS = "_layer_checkpoint_dependencies"


def is_v3(contents: Contents) -> bool:
    """Whether the file looks like a Keras 3 weights file."""
    return any(name in contents.groups for name in ("layers", "vars", OLD_LAYERS))


class VariableGroups:
    """Finds the group of variables for a path of Keras' walk.

    Parameters
    ----------
    contents : Contents
        The file.
    old_layers : bool
        Whether to read files of TensorFlow 2.12 and 2.13, as Keras 3 does.
    """

    def __init__(self, contents: Contents, *, old_layers: bool) -> None:
        self._contents = contents
        self._old_layers = old_layers and OLD_LAYERS in contents.groups

    def find(self, path: str) -> str | None:
        """Return the path of the group ``vars`` below ``path``, or ``None``."""
        group = f"{path}/vars" if path else "vars"
        if self.has_path(group):
            return group
        if path and self._old_layers:
            group = f"{path.replace('layers', OLD_LAYERS)}/vars"
            if self.has_path(group):
                return group
        return None

    def names(self, group: str) -> tuple[str, ...]:
        """Return the names in a group of variables, in no particular order.

        Raises
        ------
        Refused
            The policy does not allow following the path.
        """
        refusal = self._contents.refusal_on(group)
        if refusal is not None:
            raise policy.refused(refusal)
        return self._contents.groups.get(group, ())

    def key(self, group: str, name: str) -> str:
        """Return the key of a variable in a group."""
        return f"{group}/{name}"

    def has_path(self, path: str) -> bool:
        """Whether the file has an object at ``path``, even one that may not be followed."""
        return path in self._contents.groups or self._contents.refusal_on(path) is not None
