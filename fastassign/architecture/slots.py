"""The state of an optimizer in a legacy file: the slot and the variable that each tensor belongs to.

Four generations of Keras name the tensors (sources: ``save_optimizer_weights_to_hdf5_group`` of each, and the
optimizers):

==================================  =========================================================================
Keras 3                             ``adam/iteration``, ``adam/learning_rate``, ``adam/dense_kernel_momentum``
tf_keras, TensorFlow 2.11 on        ``iteration:0``, ``Adam/m/dense/kernel:0``
TensorFlow 1.13 to 2.10             ``Adam/iter:0``, ``Adam/dense/kernel/m:0``
Keras 1 to 2.3                      ``Adam/iterations:0`` or nothing, then ``training/Adam/Variable_7:0``: by place;
                                    to 2.0.5 variables stand in the order of their names, later in that of the layers
==================================  =========================================================================

Slots have the names that TensorFlow 2 gave them: ``m``, ``v``, ``vhat``, ``rms``, ``mg``, ``momentum``,
``accumulator``, ``accum_grad``, ``accum_var``, ``linear``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ITERATIONS = frozenset({"iteration", "iterations", "iter"})

_SLOTS = ("vhat", "velocity_hat", "m", "v", "u", "rms", "mg", "momentum", "velocity", "accumulator", "accum_grad",
          "accum_var", "accumulated_grad", "accumulated_delta_var", "linear", "average_gradient")  # fmt: skip

# The slots that each optimizer of Keras 1 and 2 lists after `iterations`: each is a block of one tensor a variable.
_BLOCKS = {
    "adam": ("m", "v", "vhat"),
    "adamax": ("m", "v"),
    "nadam": ("m", "v"),
    "rmsprop": ("rms",),
    "sgd": ("momentum",),
    "adagrad": ("accumulator",),
    "adadelta": ("accum_grad", "accum_var"),
}

_COUNTER = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class SavedState:
    """The tensors of an optimizer, by slot and variable.

    Attributes
    ----------
    iterations : int or None
        The position of the step counter among the saved tensors.
    learning_rate : int or None
        The position of the learning rate.
    slots : mapping of str to (mapping of int to int)
        For each slot: the position of the tensor for each variable, by the variable's number.
    left : tuple of int
        Positions of tensors that belong to no known slot.
    """

    iterations: int | None = None
    learning_rate: int | None = None
    slots: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    left: tuple[int, ...] = ()


def read_state(
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    class_name: str,
    variables: Mapping[str, int],
    variable_shapes: Sequence[tuple[int, ...]],
    keras_version: str,
) -> SavedState:
    """Find slot and variable of each saved tensor of an optimizer.

    Parameters
    ----------
    names, shapes : sequence
        Names and shapes of the tensors, in the order of the file.
    class_name : str
        The optimizer's class.
    variables : mapping of str to int
        The number of each variable that the optimizer updates, by its name in the file, without ``:0``.
    variable_shapes : sequence of tuple of int
        The shapes of those variables, by number.
    keras_version : str
        The version of Keras that saved the file.
    """
    bare = [name.removesuffix(":0") for name in names]
    iterations = next((i for i, name in enumerate(bare) if _last(name) in ITERATIONS and shapes[i] == ()), None)
    rate = next((i for i, name in enumerate(bare) if _last(name) == "learning_rate" and shapes[i] == ()), None)
    rest = [i for i in range(len(names)) if i not in (iterations, rate)]
    slots = _by_names(bare, rest, variables, shapes, variable_shapes)
    if not slots:
        blocks = _BLOCKS.get(class_name.lower().rpartition(">")[2], ())
        orders = [list(range(len(variable_shapes)))]
        if len(variables) == len(variable_shapes):
            orders.insert(0 if _is_sorted(keras_version) else 1, [variables[name] for name in sorted(variables)])
        found = (_by_places(rest, shapes, blocks, variable_shapes, order) for order in orders)
        slots = next((each for each in found if each), {})
    used = {position for slot in slots.values() for position in slot.values()}
    left = tuple(i for i in rest if i not in used)
    return SavedState(iterations, rate, slots, left)


def _is_sorted(keras_version: str) -> bool:
    parts = re.match(r"(\d+)\.(\d+)\.(\d+)$", keras_version)
    return parts is not None and tuple(map(int, parts.groups())) <= (2, 0, 5)


def _last(name: str) -> str:
    return _COUNTER.sub("", name.rpartition("/")[2])


def _by_names(
    names: Sequence[str],
    positions: Sequence[int],
    variables: Mapping[str, int],
    shapes: Sequence[tuple[int, ...]],
    variable_shapes: Sequence[tuple[int, ...]],
) -> dict[str, dict[int, int]]:
    """Sort by slot and variable; empty where names do not tell, or contradict the shapes."""
    found: dict[str, list[tuple[str, int]]] = {}
    for position in positions:
        slot, variable = _split(names[position])
        if not slot:
            continue
        found.setdefault(slot, []).append((variable, position))
    if not found:
        return {}
    flat = {name.replace("/", "_"): number for name, number in variables.items()}
    slots: dict[str, dict[int, int]] = {}
    for slot, members in found.items():
        numbers = [_number(variable, variables, flat) for variable, _ in members]
        if None in numbers or len(set(numbers)) < len(numbers):
            # The names are from another run of the program: the order is that of the variables.
            if len(members) != len(variable_shapes):
                return {}
            numbers = list(range(len(members)))
        placed = {
            number: position for number, (_, position) in zip(numbers, members, strict=True) if number is not None
        }
        if any(shapes[position] != variable_shapes[number] for number, position in placed.items()):
            return {}
        slots[slot] = placed
    return slots


def _split(name: str) -> tuple[str, str]:
    """Return slot and variable of a name; empty where it has none."""
    parts = name.split("/")
    # tf_keras: Optimizer/slot/variable.
    if len(parts) > 2 and parts[1] in _SLOTS:
        return parts[1], "/".join(parts[2:])
    # TensorFlow 1.13 to 2.10: [Optimizer/]variable/slot.
    if len(parts) > 1 and _last(name) in _SLOTS:
        return _last(name), "/".join(parts[:-1])
    # Keras 3: optimizer/path_of_the_variable_slot.
    if len(parts) > 1:
        for slot in _SLOTS:
            if parts[-1].endswith(f"_{slot}"):
                return slot, parts[-1].removesuffix(f"_{slot}")
    return "", ""


def _number(variable: str, variables: Mapping[str, int], flat: Mapping[str, int]) -> int | None:
    for name in (variable, variable.partition("/")[2]):  # with and without the optimizer's name
        if name in variables:
            return variables[name]
    return flat.get(variable)


def _by_places(
    positions: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    blocks: Sequence[str],
    variable_shapes: Sequence[tuple[int, ...]],
    order: Sequence[int],
) -> dict[str, dict[int, int]]:
    """Take blocks of one tensor for each variable, as long as the shapes agree."""
    count, expected = len(order), [variable_shapes[number] for number in order]
    slots: dict[str, dict[int, int]] = {}
    for i, slot in enumerate(blocks):
        block = positions[i * count : (i + 1) * count]
        if [shapes[position] for position in block] != expected:
            # Adam without AMSGrad lists stand-ins of one element in place of `vhat` (Keras 2.1.3 on).
            break
        slots[slot] = dict(zip(order, block, strict=True))
    return slots
