"""The layout of legacy Keras ``.h5`` files (Keras 1 to 3, tf_keras).

The root, or the group ``model_weights`` of a whole-model file, has the attribute ``layer_names`` in model order. Each
layer's group has the attribute ``weight_names``: the trainable weights, then the non-trainable ones, as the layer had
them when it was saved. Lists too long for an HDF5 object header are split into ``layer_names0``, ``layer_names1``, ...
(source: ``legacy_h5_format.py`` of Keras 3, ``hdf5_format.py`` of tf_keras).
"""

from __future__ import annotations

from dataclasses import dataclass

from fastassign.catalog import policy
from fastassign.catalog.records import Contents
from fastassign.errors import Malformed

WHOLE_MODEL_GROUP = "model_weights"
OPTIMIZER_GROUP = "optimizer_weights"
TOP_LEVEL_GROUP = "top_level_model_weights"


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """One layer of the file: its name, and its weights in saved order as (name, key of the record)."""

    name: str
    weights: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LegacyContents:
    """The layers of a legacy file.

    Attributes
    ----------
    layers : tuple of SavedLayer
        The layers in model order, those without weights included.
    top_level : SavedLayer or None
        The weights that belong to the model itself; ``None`` if the file is too old to have them.
    keras_version : str
        ``"1"`` if the file does not say.
    backend : str or None
        The backend that saved the file.
    """

    layers: tuple[SavedLayer, ...]
    top_level: SavedLayer | None
    keras_version: str
    backend: str | None

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all weights, in order."""
        groups = (*self.layers, self.top_level) if self.top_level is not None else self.layers
        return tuple(key for layer in groups for _, key in layer.weights)


def is_legacy(contents: Contents) -> bool:
    """Whether the file names its layers like a legacy file."""
    return any(
        (path, name) in contents.texts for path in ("", WHOLE_MODEL_GROUP) for name in ("layer_names", "layer_names0")
    )


def read_legacy(contents: Contents) -> LegacyContents:
    """Read the layout. Like stock, find no layers in a file of another kind.

    Raises
    ------
    Refused
        The policy does not allow following the path to the group of all layers.
    """
    root = ""
    if ("", "layer_names") not in contents.texts:
        if WHOLE_MODEL_GROUP in contents.refusals:
            raise policy.refused(contents.refusals[WHOLE_MODEL_GROUP])
        if WHOLE_MODEL_GROUP in contents.groups:
            root = WHOLE_MODEL_GROUP
    top = _join(root, TOP_LEVEL_GROUP)
    has_top = top in contents.groups or top in contents.refusals
    version = contents.texts.get((root, "keras_version"), ("1",))
    backend = contents.texts.get((root, "backend"), ())
    return LegacyContents(
        layers=tuple(_layer(contents, root, name) for name in _names(contents, root, "layer_names")),
        top_level=_layer(contents, root, TOP_LEVEL_GROUP) if has_top else None,
        keras_version=version[0] if version else "1",
        backend=backend[0] if backend else None,
    )


def optimizer_tensors(contents: Contents) -> tuple[tuple[str, str], ...]:
    """Return (name, key of the record) of the optimizer's tensors in a whole-model file, in saved order.

    Raises
    ------
    Refused
        The policy does not allow following the path to one of them.
    Malformed
        The file names a tensor that it does not have.
    """
    if OPTIMIZER_GROUP in contents.refusals:
        raise policy.refused(contents.refusals[OPTIMIZER_GROUP])
    found = tuple((name, f"{OPTIMIZER_GROUP}/{name}") for name in _names(contents, OPTIMIZER_GROUP, "weight_names"))
    for name, key in found:
        refusal = contents.refusal_on(key)
        if refusal is not None:
            raise policy.refused(refusal)
        if key not in contents.records:
            raise Malformed(f"the file lists {name!r} of the optimizer, but has no dataset of that name", tensor=key)
    return found


def _layer(contents: Contents, root: str, name: str) -> SavedLayer:
    group = _join(root, name)
    if contents.refusal_on(group) is not None:
        # A weight that may not be read either, so that a request for it raises the reason.
        return SavedLayer(name=name, weights=(("", group),))
    names = _names(contents, group, "weight_names")
    return SavedLayer(name=name, weights=tuple((weight, f"{group}/{weight}") for weight in names))


def _names(contents: Contents, group: str, attribute: str) -> tuple[str, ...]:
    whole = contents.texts.get((group, attribute))
    if whole is not None:
        return whole
    names: list[str] = []
    chunk = 0
    while (part := contents.texts.get((group, f"{attribute}{chunk}"))) is not None:
        names += part
        chunk += 1
    return tuple(names)


def _join(root: str, name: str) -> str:
    return f"{root}/{name}" if root else name
