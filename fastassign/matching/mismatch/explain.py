"""Both sides of a failed load, as parts to compare; nothing here runs for a load that succeeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import LegacyContents, SavedLayer
from fastassign.catalog.records import Contents
from fastassign.errors import Mismatch
from fastassign.matching.keras3.keras_walk import KerasWalk
from fastassign.matching.keras3.names import names_of
from fastassign.matching.keras3.tf_keras_walk import TfKerasWalk
from fastassign.matching.keras3.walk import Visitor
from fastassign.matching.mismatch.alignment import WeightGroup
from fastassign.matching.mismatch.diff import Diff, make_diff
from fastassign.matching.selection import path_below
from fastassign.targets.target import ModelTargets, Target

_TOP_LEVEL = "top_level_model_weights"


def explain(
    error: Mismatch, model: ModelTargets, catalog: Catalog, saved: LegacyContents | None, *, advise: bool
) -> None:
    """Give an error the diff of file and model, and the call that would load the layers that fit.

    Parameters
    ----------
    error : Mismatch
        The error.
    model, catalog
        The two sides.
    saved : LegacyContents or None
        The layers and weights that the file lists, if it was read as a legacy file.
    advise : bool
        Whether the call is useful: it is not if one like it has just failed.
    """
    try:
        diff = _diff(model, catalog, saved)
    except Exception:  # noqa: BLE001 - the error to explain says more than any error of a strange model or file here
        return
    if diff is None or not diff.rows:
        return
    error.explain(diff)
    if advise and diff.call:
        error.advise(f"{error.hint}; or: {diff.call}" if error.hint else diff.call)


def _diff(model: ModelTargets, catalog: Catalog, saved: LegacyContents | None) -> Diff | None:
    if catalog.format != ("keras3" if saved is None else "legacy"):
        return None
    if saved is not None:
        parts, wanted = _legacy_file(catalog.contents, saved), _legacy_model(model)
    else:
        parts, wanted = _keras3_file(catalog.contents), _Listing(model).parts()
    return make_diff(parts, wanted, by_rank=saved is not None) if parts and wanted else None


def _legacy_file(contents: Contents, saved: LegacyContents) -> list[WeightGroup]:
    def part(layer: SavedLayer) -> WeightGroup:
        weights = [(name, contents.records[key].shape) for name, key in layer.weights if key in contents.records]
        return WeightGroup(layer.name, tuple((_below(layer.name, name), shape) for name, shape in weights))

    layers = [*saved.layers, *([saved.top_level] if saved.top_level is not None else [])]
    return [part(layer) for layer in layers if layer.weights]


def _legacy_model(model: ModelTargets) -> list[WeightGroup]:
    parts = [
        WeightGroup(layer.name, _weights(layer.name, layer.targets), (_escaped(layer.name),))
        for layer in model.layers()
    ]
    own = model.top_level(by_name=False)
    if own:
        patterns = tuple(_escaped(path_below(model.model.name, target.name)) for target in own)
        parts.append(WeightGroup(_TOP_LEVEL, _weights(model.model.name, own), patterns))
    return parts


def _weights(layer: str, targets: tuple[Target, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((_below(layer, target.name), target.shape) for target in targets)


def _below(layer: str, weight: str) -> str:
    return path_below(layer, weight)[len(layer) + 1 :]


def _keras3_file(contents: Contents) -> list[WeightGroup]:
    groups: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for key, record in contents.records.items():
        group, _, name = key.rpartition("/")
        # Keras only warns if the optimizer does not fit.
        if group.rpartition("/")[2] == "vars" and not group.startswith("optimizer/"):
            groups.setdefault(group, []).append((name, record.shape))
    return [WeightGroup(group, tuple(sorted(weights, key=_number))) for group, weights in groups.items()]


def _number(weight: tuple[str, Any]) -> tuple[int, str]:
    return (int(weight[0]) if weight[0].isdecimal() else -1, weight[0])


class _Listing(Visitor):
    """Lists the groups that a walk looks for, instead of matching them."""

    def __init__(self, model: ModelTargets) -> None:
        self._model = model
        self._found: dict[str, tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]] = {}

    def parts(self) -> list[WeightGroup]:
        """Walk over the model, and return its groups."""
        if self._model.library == "keras":
            KerasWalk(self._model, self).run()
        else:
            TfKerasWalk(self._model, self, skip_failures=True).run()
        around = [where for where, _ in self._found.values()]
        return [
            # The name of a layer reads better than its path in the file, if only that layer has it.
            WeightGroup(group, weights, (_escaped(where if _is_alone(where, around) else group),))
            for group, (where, weights) in self._found.items()
        ]

    def visit(self, obj: Any, path: str, around: Sequence[str]) -> None:
        own = self._model.own(obj)
        if own.kind == "listed" and own.variables:
            group = f"{path}/vars" if path else "vars"
            weights = tuple((str(i), target.shape) for i, target in enumerate(own.variables))
            self._found[group] = (names_of(around, obj, path), weights)

    def visit_again(self, obj: Any, path: str, around: Sequence[str]) -> None:
        pass

    def has_path(self, path: str) -> bool:  # noqa: ARG002 - here all that the model has is listed
        return True

    def lose(self, objects: Sequence[Any], path: str) -> None:
        pass


def _is_alone(where: str, others: list[str]) -> bool:
    return bool(where) and sum(other == where or other.startswith(f"{where}/") for other in others) == 1


def _escaped(name: str) -> str:
    """Return a name as a pattern that matches only this name."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
