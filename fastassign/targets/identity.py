"""What a layer holds: told by identity, so that a change is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def layers_held(layer: Any, is_layer: Callable[[Any], bool]) -> list[Any]:
    """Return the layers among the attributes of a layer, and in lists and mappings among them, in order.

    Only for classes that somebody else wrote: those of the libraries themselves do not exchange their layers.

    Parameters
    ----------
    layer : keras.Layer or tf_keras.layers.Layer
        The layer.
    is_layer : callable
        Tells what counts.
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
