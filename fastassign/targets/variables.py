"""Plain TensorFlow variables: which of them the raw assign op may be used on."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from fastassign.errors import Unsupported
from fastassign.targets.target import Target

# The class of a variable made eagerly outside of any strategy. Subclasses (distributed, sharded, DTensor,
# caching) have several handles or a relayout behind `assign`: they are never assigned by handle.
with tf.device("CPU:0"):
    PLAIN = type(tf.Variable(0, trainable=False))


def check_eager() -> None:
    """Refuse graph mode, where stock's loaders return without loading anything (facts: bug B12).

    Raises
    ------
    Unsupported
        Inside a ``tf.Graph``, or after ``disable_eager_execution``.
    """
    if not tf.executing_eagerly() and not tf.inside_function():
        raise Unsupported(
            "loading in TensorFlow 1 graph mode is not supported yet",
            hint="load eagerly, or use tf_keras' own load_weights with a legacy .h5 file",
        )


def may_use_handles() -> bool:
    """Whether assignments may bypass the library: not while a function is traced."""
    return bool(tf.executing_eagerly())


def plain_resource(variable: Any) -> Any | None:
    """Return the variable itself if it is a plain resource variable, else ``None``."""
    return variable if type(variable) is PLAIN else None


def shape_text(shape: tuple[int, ...]) -> str:
    """Write a shape as TensorFlow does."""
    return str(tf.TensorShape(shape))


def target_of(variable: tf.Variable, *, handles: bool) -> Target:
    """Make the target of a ``tf.Variable``, looking through tf_keras' autocasting wrapper."""
    inner = getattr(variable, "_variable", variable)
    resource = plain_resource(inner) if handles else None
    return Target(
        name=variable.name,
        shape=tuple(inner.shape.as_list()),
        dtype=inner.dtype.base_dtype.name,
        variable=variable,
        resource=resource,
        device=resource.device if resource is not None else "",
    )
