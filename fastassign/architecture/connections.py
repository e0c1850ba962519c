"""Rules for how the layers of a model are connected; see ``rules.py``.

A call of a layer takes outputs of calls of others. Keras 1 to tf_keras write each as ``[layer, call, output,
keywords]``; Keras 3 writes ``{"args": ..., "kwargs": ...}`` with such a list in every tensor's ``keras_history``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastassign.architecture.saved import Node, layer_name, layers_of, own_config


def inner_calls(node: Node) -> bool:
    """Keras 2, tf_keras: a nested model counts its own building as its first call; in Keras 3 it does not.

    Where Keras 3 reads the outputs of a model, it subtracts that call itself, for every model but a Sequential.
    """
    layers = layers_of(node)
    kinds = {str(layer.get("name")): layer.get("class_name") for layer in layers}
    inner = {name for name, kind in kinds.items() if kind in {"Sequential", "Functional", "Model"}}
    inbound = [ref for ref in _references([layer.get("inbound_nodes") for layer in layers]) if ref[0] in inner]
    config = own_config(node)
    ends = [ref for ref in _references([config.get("input_layers"), config.get("output_layers")]) if ref[0] in inner]
    lowest: dict[str, int] = {}
    for ref in (*inbound, *ends):
        lowest[ref[0]] = min(ref[1], lowest.get(ref[0], ref[1]))
    for ref in (*inbound, *(ref for ref in ends if kinds[ref[0]] == "Sequential")):
        ref[1] -= lowest[ref[0]]
    return any(lowest.values())


def _references(stack: list[Any]) -> list[list[Any]]:
    """Return the lists [layer, call, output, ...] that connect the layers of a model."""
    found = []
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
                found.append(value)
                stack.extend(value[3:])
            else:
                stack.extend(value)
    return found


def keyword_tensors(node: Node) -> bool:
    """tf.keras: tensors among the keyword arguments of a call, and constants; Keras 3 reads its own form only."""
    layers = layers_of(node)
    names = {str(layer.get("name")) for layer in layers}
    changed = False
    for layer in layers:
        inbound = layer.get("inbound_nodes")
        calls: list[Any] = inbound if isinstance(inbound, list) else []
        for i, call in enumerate(calls):
            if not isinstance(call, list) or not all(isinstance(ref, list) and len(ref) >= 3 for ref in call):
                continue
            keywords = next((ref[3] for ref in call if len(ref) > 3 and isinstance(ref[3], dict)), {})
            made = {key: _tensor(value, names) for key, value in keywords.items()}
            if made == keywords and all(ref[0] in names for ref in call):
                continue
            arguments = [_tensor(ref[:3], names) for ref in call]
            calls[i] = {"args": arguments if len(arguments) == 1 else [arguments], "kwargs": made}
            changed = True
    return changed


def _tensor(value: Any, names: set[str]) -> Any:
    """Return [layer, call, output] as Keras 3 writes it, and a constant as its value."""
    if isinstance(value, list) and len(value) >= 3 and isinstance(value[1], int):
        if value[0] == "_CONSTANT_VALUE":
            return value[2]
        if value[0] in names:
            # Keras looks at the history alone.
            config = {"shape": [], "dtype": "float32", "keras_history": value[:3]}
            return {"class_name": "__keras_tensor__", "config": config}
    return [_tensor(item, names) for item in value] if isinstance(value, list) else value


def slashes(node: Node) -> bool:
    """Keras 1 to tf_keras: a layer's name may contain ``/``."""
    layers = layers_of(node)
    taken = {layer_name(layer) for layer in layers} | {str(layer.get("name")) for layer in layers}
    renamed: dict[str, str] = {}
    for name in sorted(name for name in taken if "/" in name):
        new = name.replace("/", "_")
        while new in taken or new in renamed.values():
            new += "_"
        renamed[name] = new
    own = own_config(node)
    ends = [own.get("input_layers"), own.get("output_layers")]
    for ref in _references([*(layer.get("inbound_nodes") for layer in layers), *ends]) if renamed else ():
        ref[0] = renamed.get(ref[0], ref[0])
    for layer in layers:
        for place in (layer, own_config(layer)):
            if place.get("name") in renamed:
                place["name"] = renamed[place["name"]]
    if "/" in str(own.get("name", "")):
        own["name"] = own["name"].replace("/", "_")
        return True
    return bool(renamed)


# Layers that take one list of inputs, and operations of the same names that take two inputs.
MERGING = frozenset({"Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract"})


def operations(module_of: Callable[[str], str | None]) -> Callable[[Node], bool]:
    """Make the rule for files of Keras 3 itself: in legacy files an operation such as ``x + y`` looks like a layer.

    Parameters
    ----------
    module_of : callable
        Returns the module of an operation by its class name; ``None`` if the class is not an operation.
    """

    def apply(node: Node) -> bool:
        changed = False
        for layer in layers_of(node):
            name, calls = layer.get("class_name"), layer.get("inbound_nodes")
            if "module" in layer or not isinstance(name, str) or not isinstance(calls, list):
                continue
            arguments = [call.get("args") for call in calls if isinstance(call, dict)]
            is_call = any(isinstance(each, list) and len(each) > 1 for each in arguments)
            module = module_of(name) if is_call or name not in MERGING else None
            if module is not None:
                layer.update(module=module, registered_name=name)
                changed = True
        return changed

    return apply
