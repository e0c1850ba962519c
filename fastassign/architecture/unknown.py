"""Checks on a configuration: whether its classes are known, and whether it holds Python code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastassign.architecture.saved import layers_of, nodes
from fastassign.errors import Mismatch, Refused


def check_known(config: dict[str, Any], is_known: Callable[[str], bool]) -> None:
    """Raise an error if layers are of unknown classes.

    Parameters
    ----------
    config : dict
        The configuration of a model.
    is_known : callable
        Gets the name of a class; returns whether it is known.

    Raises
    ------
    Mismatch
        The text lists every such class with its layers and the arguments that it would get.
    """
    unknown: dict[str, list[dict[str, Any]]] = {}
    for layer in _layers(config):
        name = str(layer.get("registered_name") or layer["class_name"])
        if not (is_known(name) or is_known(layer["class_name"])):
            unknown.setdefault(layer["class_name"], []).append(layer)
    if not unknown:
        return
    lines = []
    for name, layers in unknown.items():
        first = layers[0]["config"] if isinstance(layers[0]["config"], dict) else {}
        places = ", ".join(sorted(str(layer.get("name") or first.get("name", "?")) for layer in layers)[:5])
        arguments = ", ".join(key for key in first if key not in {"name", "trainable", "dtype"})
        lines.append(f"{name} ({places}{', ...' if len(layers) > 5 else ''}; arguments: {arguments or 'none'})")
    names = ", ".join(f"{name!r}: {name}" for name in unknown)
    raise Mismatch(
        f"Unknown layer: {'; '.join(lines)}",
        hint=f"pass their classes: load_model(path, custom_objects={{{names}}})",
    )


def _layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for node in nodes(config):
        found += [layer for layer in layers_of(node) if isinstance(layer.get("class_name"), str) and "config" in layer]
        inner = node["config"].get("layer") if isinstance(node["config"], dict) else None
        if isinstance(inner, dict) and isinstance(inner.get("class_name"), str) and "config" in inner:
            found.append(inner)
    return found


def check_code(config: dict[str, Any]) -> None:
    """Raise an error if a configuration holds Python code, which would run when the model is built.

    Raises
    ------
    Refused
        There is code in it.
    """
    for node in nodes(config):
        function = node["config"].get("function") if isinstance(node["config"], dict) else None
        is_code = isinstance(function, list) or (
            isinstance(function, dict) and function.get("class_name") == "__lambda__"
        )
        if node["class_name"] == "__lambda__" or (node["class_name"] == "Lambda" and is_code):
            name = node["config"].get("name", "") if isinstance(node["config"], dict) else ""
            raise Refused(
                f"Requested the deserialization of a Lambda layer {name!r} whose Python code is in the file. This "
                "carries a potential risk of arbitrary code execution and thus it is disallowed by default.",
                rule="code",
                option="load_model(path, safe_mode=False)",
            )
