"""The variables of an optimizer, by slot and by the variable that each belongs to.

Keras 3 builds the optimizer for the wrong variables and then drops its whole state, or mixes up the slots
(docs/internals/keras.md, B1); here position counts only where there are no names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastassign.architecture.slots import SavedState

# For each slot the attribute that lists its variables, in the order of the variables that the optimizer was built for.
# Keras 3 and tf_keras' new optimizers have the same names.
_LISTS: dict[str, dict[str, str]] = {
    "adam": {"m": "_momentums", "v": "_velocities", "vhat": "_velocity_hats"},
    "adamw": {"m": "_momentums", "v": "_velocities", "vhat": "_velocity_hats"},
    "nadam": {"m": "_momentums", "v": "_velocities"},
    "lamb": {"m": "_momentums", "v": "_velocities"},
    "adamax": {"m": "_m", "v": "_u", "u": "_u"},
    "rmsprop": {"rms": "_velocities", "velocity": "_velocities", "momentum": "_momentums", "mg": "_average_gradients",
                "average_gradient": "_average_gradients"},
    "sgd": {"momentum": "momentums", "m": "momentums"},
    "lion": {"m": "_momentums", "momentum": "_momentums"},
    "adagrad": {"accumulator": "_accumulators"},
    "adadelta": {"accum_grad": "_accumulated_grads", "accum_var": "_accumulated_delta_vars",
                 "accumulated_grad": "_accumulated_grads", "accumulated_delta_var": "_accumulated_delta_vars"},
    "ftrl": {"accumulator": "_accumulators", "linear": "_linears"},
}  # fmt: skip

_ALIASES = {"momentum": "m", "velocity": "v", "velocity_hat": "vhat"}


def slot_variables(optimizer: Any, slot: str, variables: Sequence[Any]) -> list[Any]:
    """Return the variables of a slot, one for each variable that the optimizer updates; empty where it has none."""
    if hasattr(optimizer, "get_slot_names"):  # tf_keras' legacy optimizers
        names = optimizer.get_slot_names()
        name = slot if slot in names else _ALIASES.get(slot, slot)
        return [optimizer.get_slot(variable, name) for variable in variables] if name in names else []
    lists = _LISTS.get(type(optimizer).__name__.lower(), {})
    name = lists.get(slot) or lists.get(_ALIASES.get(slot, slot), "")
    # The names of Lion's and SGD's lists differ by an underscore between the libraries.
    return list(getattr(optimizer, name, None) or getattr(optimizer, name.lstrip("_"), None) or ()) if name else []


def pairs(optimizer: Any, variables: Sequence[Any], state: SavedState) -> Iterator[tuple[Any, int]]:
    """Yield (variable of the optimizer, position of its saved tensor).

    Parameters
    ----------
    optimizer : optimizer of Keras 3 or tf_keras
        Built for ``variables``.
    variables : sequence of variable
        The variables that it updates.
    state : SavedState
        The saved tensors.
    """
    if state.iterations is not None:
        yield optimizer.iterations, state.iterations
    rate = getattr(optimizer, "_learning_rate", None)
    if state.learning_rate is not None and hasattr(rate, "assign"):
        yield rate, state.learning_rate
    for slot, members in state.slots.items():
        found = slot_variables(optimizer, slot, variables)
        for number, position in members.items():
            if number < len(found):
                yield found[number], position
