"""TensorFlow variables of every kind as targets: assigned by handle, by a session, or by the library alone."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from fastassign.targets.deferred import PLAIN, DeferredVariable, raw_handle
from fastassign.targets.target import Target


def in_user_graph() -> bool:
    """Whether the caller is in a TensorFlow 1 graph, where an op has no effect until a session runs it."""
    return not tf.executing_eagerly() and not tf.inside_function()


def eager_scope() -> Any:
    """Return a context in which eager variables can be assigned.

    Inside ``tf.Graph().as_default()`` their assignment would become an op that no session runs. ``tf.init_scope``
    leaves only functions.
    """
    return tf.__internal__.eager_context.eager_mode() if in_user_graph() else nullcontext()


def may_use_handles() -> bool:
    """Whether assignments may bypass the library; they may not while a function is traced."""
    return not tf.inside_function()


def plain_resource(variable: Any) -> Any | None:
    """Return the variable itself if it is a plain resource variable, else ``None``."""
    return variable if type(variable) in (PLAIN, DeferredVariable) else None


def graph_of(variable: Any) -> Any | None:
    """Return the ``tf.Graph`` that a variable belongs to; ``None`` if it is eager."""
    if type(variable) is PLAIN:
        handle = variable.handle
        if not tf.is_symbolic_tensor(handle):
            return None
        # A function's graph can't be fed; its variables are assigned by the library's own method.
        return None if handle.graph.building_function else handle.graph
    if is_ref(variable):
        return variable.graph
    # The components of a distributed variable are all in one graph.
    parts = getattr(variable, "values", None)
    # So are the parts of a partitioned one.
    parts = getattr(variable, "_variable_list", None) if parts is None else parts
    return graph_of(parts[0]) if isinstance(parts, (tuple, list)) and parts else None


def is_ref(variable: Any) -> bool:
    """Whether a variable is of TensorFlow's old kind, which exists only in graphs; its class is not public."""
    return type(variable).__name__ == "RefVariable"


def _unwrapped(variable: Any) -> Any:
    """Return the variable behind tf_keras' autocasting wrapper."""
    # A variable of the old kind has a `_variable` too, which is its tensor.
    return variable if is_ref(variable) else getattr(variable, "_variable", variable)


def target_of(variable: Any, inner: Any, *, name: str, shape: tuple[int, ...], dtype: str, handles: bool) -> Target:
    """Make a target.

    Parameters
    ----------
    variable : keras.Variable or tf.Variable
        The object whose ``assign`` is the library's own.
    inner : tf.Variable
        The TensorFlow variable behind it.
    name, shape, dtype : str, tuple of int, str
        As the library shows them.
    handles : bool
        Whether it may be assigned by handle.
    """
    graph = graph_of(inner)
    if graph is None:
        resource = plain_resource(inner) if handles else None
    else:
        resource = inner if is_ref(inner) else plain_resource(inner)
    return Target(
        name=name,
        shape=shape,
        dtype=dtype,
        variable=variable,
        resource=resource,
        device=raw_handle(resource).device if graph is None and resource is not None else "",
        graph=graph,
    )


def tf_target(variable: Any, *, handles: bool, shape: tuple[int, ...] | None = None) -> Target:
    """Make the target of a ``tf.Variable``, looking through tf_keras' autocasting wrapper.

    Parameters
    ----------
    variable : tf.Variable
        The variable.
    handles : bool
        Whether it may be assigned by handle.
    shape : tuple of int, optional
        The shape of the new value, if the variable's own is open. Only the library can assign it then, because the raw
        op requires the shape of the present value.
    """
    inner = _unwrapped(variable)
    return target_of(
        variable,
        inner,
        name=variable.name,
        shape=tuple(inner.shape.as_list()) if shape is None else shape,
        dtype=inner.dtype.base_dtype.name,
        handles=handles and shape is None,
    )


def keras_target(variable: Any, *, handles: bool) -> Target:
    """Make the target of a Keras 3 variable."""
    return target_of(
        variable,
        variable._value,
        name=variable.path,
        shape=tuple(variable._shape),
        dtype=variable._dtype,
        handles=handles,
    )


def any_target(variable: Any, shape: tuple[int, ...], *, handles: bool) -> Target:
    """Make the target of a variable of Keras 3, tf_keras or TensorFlow itself, for a value of some shape.

    Parameters
    ----------
    variable : keras.Variable or tf.Variable
        The variable.
    shape : tuple of int
        The value's shape. The target gets this shape if it fits the declared one, whose dimensions may be open;
        otherwise it gets the declared one, with -1 for each open dimension.
    handles : bool
        Whether it may be assigned by handle; see ``may_use_handles``.

    Raises
    ------
    TypeError
        The object is not a variable.
    """
    # The properties of a TensorFlow variable never change: looking them up takes 2 microseconds, finding them 15.
    attributes: dict[str, Any] = getattr(variable, "__dict__", {})
    kept: tuple[Any, ...] | None = attributes.get("_fastassign_target")
    if kept is not None and handles:
        name, kept_shape, dtype, is_plain, device, graph = kept
        return Target(name, kept_shape, dtype, variable, _unwrapped(variable) if is_plain else None, device, graph)
    if hasattr(variable, "_value") and hasattr(variable, "path"):
        return keras_target(variable, handles=handles and not _in_stateless_scope())
    if not hasattr(variable, "assign") or not hasattr(variable, "dtype"):
        raise TypeError(f"{variable!r} is not a variable of keras, tf_keras or tensorflow")
    declared = static_shape(variable)
    if declared is None or None in declared:
        given = shape if fits(declared, shape) else tuple(-1 if d is None else d for d in declared or ())
        return tf_target(variable, handles=False, shape=given)
    target = tf_target(variable, handles=handles)
    if handles:
        # Not the target itself: it refers to the variable, and the circle would keep both until the next collection.
        variable._fastassign_target = (
            target.name, target.shape, target.dtype, target.resource is not None, target.device, target.graph
        )  # fmt: skip
    return target


def _in_stateless_scope() -> bool:
    from keras.src.backend.common.stateless_scope import in_stateless_scope

    return bool(in_stateless_scope())


def fits(declared: tuple[int | None, ...] | None, shape: tuple[int, ...]) -> bool:
    """Whether a declared shape allows a shape; ``None`` stands for an open dimension, or an open rank."""
    if declared is None:
        return True
    return len(declared) == len(shape) and all(a in (None, b) for a, b in zip(declared, shape, strict=True))


def shape_error(target: Target, received: tuple[int, ...]) -> str:
    """Return the text of the library's own ``assign`` for a value of the wrong shape."""
    variable = target.variable
    if hasattr(variable, "_value"):
        return (
            "The shape of the target variable and "
            "the shape of the target value in "
            "`variable.assign(value)` must match. "
            f"variable.shape={variable.shape}, "
            f"Received: value.shape={tf.TensorShape(received)}. "
            f"Target variable: {variable}"
        )
    return (
        f"Cannot assign value to variable ' {target.name}': Shape mismatch."
        f"The variable shape {variable.shape}, and the assigned value shape {received} are incompatible."
    )


@cache
def numpy_dtype_of(dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype of a TensorFlow dtype, by its name."""
    found: np.dtype[Any] = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    return found


def static_shape(variable: Any) -> tuple[int | None, ...] | None:
    """Return the shape that a variable is declared with: ``None`` for each open dimension, or for an open rank."""
    shape = tf.TensorShape(_unwrapped(variable).shape)
    return None if shape.rank is None else tuple(shape.as_list())
