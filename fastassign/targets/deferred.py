"""Variables without a value yet: the first use makes it, and a load replaces it before it is made.

Building a model spends most of its time on random initial values, which a file then replaces. Here a variable is made
without a value, and keeps the function that makes it. The function runs at the first use of the variable, whatever the
use, so that no code ever meets a variable without a value; a load assigns the variable before that.

A ``DeferredVariable`` can do this because its handle is a property. Once it has a value it becomes a
``ResourceVariable`` like any other, at no extra cost.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

# The class of a variable made outside of any strategy, eagerly or in a graph. Subclasses (distributed, sharded,
# DTensor, caching) have several handles or a relayout behind `assign`: they are never assigned by handle.
# The variable is made in a temporary graph, because the default graph may be the user's.
with tf.Graph().as_default():
    PLAIN = type(tf.compat.v1.Variable(0, use_resource=True, trainable=False))

# The names of the graphs in which tf_keras and Keras 3 try layers out (``base_layer.py`` and ``backend.py``;
# ``compute_output_spec`` of the backend).
_SCRATCH = re.compile(r"keras_graph|.*_scratch_graph|scratch_graph(_\d+)?")

_INITIAL = "_fastassign_initial_value"

# Reentrant, because one variable's initial value may be made from another.
_lock = threading.RLock()


class DeferredVariable(PLAIN):  # type: ignore[misc,valid-type] # the class has no public name
    """A variable that makes its initial value when its handle is first used."""

    @property
    def _handle(self) -> Any:
        if not _is_scratch(tf.compat.v1.get_default_graph()):
            settle(self)
        return vars(self)["_handle"]

    @_handle.setter
    def _handle(self, handle: Any) -> None:
        self.__dict__["_handle"] = handle


def _is_scratch(graph: Any) -> bool:
    """Whether the libraries use a graph only to find out shapes, and never run it."""
    return _SCRATCH.fullmatch(str(getattr(graph, "name", ""))) is not None


def raw_handle(variable: Any) -> Any:
    """Return the handle of a variable without making its value."""
    return vars(variable)["_handle"] if type(variable) is DeferredVariable else variable.handle


def has_value(variable: Any) -> None:
    """Note that a variable was assigned by its raw handle."""
    if type(variable) is DeferredVariable:
        with _lock:
            variable.__dict__.pop(_INITIAL, None)
            variable.__class__ = PLAIN


def settle(variable: Any) -> None:
    """Give a variable its initial value, if it has none."""
    with _lock:
        if type(variable) is not DeferredVariable:
            return
        handle, initial_value = vars(variable)["_handle"], vars(variable)[_INITIAL]
        with tf.init_scope(), tf.device(handle.device):
            value = tf.convert_to_tensor(initial_value(), dtype=variable.dtype)
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)
        has_value(variable)


@contextmanager
def deferred() -> Iterator[None]:
    """Make variables without values in this block; see ``fastassign.deferred_init``."""
    with tf.variable_creator_scope(_create):
        yield


def _create(next_creator: Callable[..., Any], **arguments: Any) -> Any:
    initial_value = arguments.get("initial_value")
    shape, dtype = _shape_and_dtype(initial_value, arguments)
    if shape is None or not _is_ordinary(arguments):
        return next_creator(**arguments)
    with tf.init_scope():
        variable = UninitializedVariable(
            trainable=arguments.get("trainable"),
            name=arguments.get("name"),
            shape=shape,
            dtype=dtype,
            synchronization=arguments.get("synchronization"),
            aggregation=arguments.get("aggregation"),
            constraint=arguments.get("constraint"),
        )
    vars(variable)[_INITIAL] = initial_value
    variable.__class__ = DeferredVariable
    return variable


def _is_ordinary(arguments: dict[str, Any]) -> bool:
    """Whether a variable is one that TensorFlow's own creator would make, eagerly."""
    with tf.init_scope():
        eager = tf.executing_eagerly()
    # If another variable creator is in force, the variable is not ours to make.
    creators = [creator for _, creator in tf.compat.v1.get_default_graph()._variable_creator_stack]
    return (
        eager
        and not tf.distribute.has_strategy()
        and all(creator is _create for creator in creators)
        and arguments.get("validate_shape") is not False
        and arguments.get("use_resource") is not False
        and not arguments.get("caching_device")
    )


def _shape_and_dtype(initial_value: Any, arguments: dict[str, Any]) -> tuple[tf.TensorShape | None, Any]:
    """Return shape and dtype if they are known beforehand; ``None`` unless a function makes the value."""
    dtype = arguments.get("dtype")
    if not callable(initial_value) or dtype is None:
        return None, None
    shape = arguments.get("shape")
    if shape is None:
        # In Keras 3 only its own variable knows the shape: the one whose method the function was defined in.
        for cell in getattr(initial_value, "__closure__", None) or ():
            owner = cell.cell_contents
            if hasattr(owner, "_initialize_with_initializer"):
                shape = owner._shape
    if shape is None or not tf.TensorShape(shape).is_fully_defined():
        return None, None
    return tf.TensorShape(shape), tf.as_dtype(dtype)
