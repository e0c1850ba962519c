"""The layers inside a layer: those that older versions of Keras stored in another form, and those that it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastassign.targets.target import InnerLayer, LayerTargets

# Found by the names of their classes, as in Keras: a subclass of ``Conv2D`` may hold its kernel in another form.
_KINDS = frozenset(
    {"Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "ConvLSTM2D", "LSTM", "GRU", "CuDNNLSTM", "CuDNNGRU"}
)
_MODELS = frozenset({"Model", "Sequential", "Functional"})


def inner_layers(layer: LayerTargets, weights_of: Callable[[Any], Sequence[Any]]) -> list[InnerLayer]:
    """Find the layers whose weights older versions stored in another form.

    Parameters
    ----------
    layer : LayerTargets
        The top-level layer.
    weights_of : callable
        Returns the variables of a layer in the order of legacy files.
    """
    positions = {id(target.variable): position for position, target in enumerate(layer.targets)}
    found: dict[int, InnerLayer] = {}
    for inner in _leaves(layer.layer):
        weights = weights_of(inner)
        if id(inner) not in found and weights and all(id(weight) in positions for weight in weights):
            places = tuple(positions[id(weight)] for weight in weights)
            found[id(inner)] = InnerLayer(type(inner).__name__, places, getattr(inner, "data_format", None) or "")
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


def layers_held(layer: Any, is_layer: Callable[[Any], bool]) -> list[Any]:
    """Return the layers among the attributes of a layer, and in lists and mappings among these, in order.

    Only for custom classes: those of the libraries themselves do not exchange their layers.

    Parameters
    ----------
    layer : keras.Layer or tf_keras.layers.Layer
        The layer.
    is_layer : callable
        Returns whether a value is a layer.
    """
    if type(layer).__module__.partition(".")[0] in {"keras", "tf_keras"}:
        return []
    found: list[Any] = []
    for value in vars(layer).values():
        if isinstance(value, (list, tuple)):
            found += filter(is_layer, value)
        elif isinstance(value, dict):
            found += filter(is_layer, value.values())
        elif is_layer(value):
            found.append(value)
    return found
