"""The layers inside a layer whose weights older versions of Keras stored otherwise.

Told by the names of their classes, as Keras does: a subclass of ``Conv2D`` may hold its kernel as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastassign.targets.target import LayerTargets, Part

_KINDS = frozenset(
    {"Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "ConvLSTM2D", "LSTM", "GRU", "CuDNNLSTM", "CuDNNGRU"}
)
_MODELS = frozenset({"Model", "Sequential", "Functional"})


def collect(layer: LayerTargets, weights_of: Callable[[Any], Sequence[Any]]) -> list[Part]:
    """Find them.

    Parameters
    ----------
    layer : LayerTargets
        The top-level layer.
    weights_of : callable
        Returns the variables of a layer in the order of legacy files.
    """
    positions = {id(target.variable): position for position, target in enumerate(layer.targets)}
    found: dict[int, Part] = {}
    for inner in _leaves(layer.layer):
        weights = weights_of(inner)
        if id(inner) not in found and weights and all(id(weight) in positions for weight in weights):
            places = tuple(positions[id(weight)] for weight in weights)
            found[id(inner)] = Part(type(inner).__name__, places, getattr(inner, "data_format", None) or "")
    return list(found.values())


def _leaves(layer: Any) -> Iterator[Any]:
    kind = type(layer).__name__
    if kind in _KINDS:
        yield layer
        return
    inside: Sequence[Any] = ()
    if kind == "Bidirectional":
        inside = (layer.forward_layer, layer.backward_layer)
    elif kind == "TimeDistributed":
        inside = (layer.layer,)
    elif kind in _MODELS:
        inside = layer.layers
    for inner in inside:
        yield from _leaves(inner)
