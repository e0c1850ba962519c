"""A function of TensorFlow's runtime that assigns many variables: put together node by node, not traced.

To trace it as a ``tf.function`` would take 2 milliseconds a variable, because its ops would be made one by one in
Python, and then rewritten by an optimiser that finds nothing to do; and each call would spend 13 microseconds an
argument in Python. To put it together takes 0.3 milliseconds a variable, most of that in the first call.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.python.eager import context

from fastassign.assigning.host.memory import reads_copy
from fastassign.targets.target import Target

# The function only cuts up and assigns: there is nothing to optimise.
_CONFIG = tf.compat.v1.ConfigProto()
_CONFIG.graph_options.rewrite_options.disable_meta_optimizer = True
_CONFIG_BYTES = _CONFIG.SerializeToString()

_numbers = itertools.count()

_RESOURCE, _INT32 = tf.resource.as_datatype_enum, tf.int32.as_datatype_enum


class SlabSlice(NamedTuple):
    """A slice of a slab; it begins at the end of the slice before.

    Attributes
    ----------
    target : Target
        The plain resource variable that it belongs to.
    rows : int
        Number of rows.
    is_argument : bool
        Whether the variable gets its value from an argument instead of these rows.
    """

    target: Target
    rows: int
    is_argument: bool = False


class AssignFunction:
    """Assigns variables of one device and one dtype from one tensor; removed when the last reference to it goes.

    Parameters
    ----------
    slices : sequence of SlabSlice
        The slices of the slab, in order.
    row : int
        Number of elements in a row of the slab, which has 64 bytes. A slice of whole rows becomes a value without being
        copied; a value that does not fill its last row is copied.
    """

    def __init__(self, slices: Sequence[SlabSlice], row: int) -> None:
        # The op that calls the function takes an object with a name.
        self.name = f"__fastassign_assign_{next(_numbers)}"
        self._handles = [piece.target.resource.handle for piece in slices]  # type: ignore[union-attr] # see `SlabSlice`
        runtime = context.context()
        runtime.add_function_def(_Definition(self.name, slices, row).proto)
        weakref.finalize(self, runtime.remove_function, self.name).atexit = False

    def __call__(self, slab: Any, arguments: Sequence[np.ndarray[Any, Any]] = ()) -> None:
        """Assign the values.

        Parameters
        ----------
        slab : tensor
            The slab, two-dimensional, with rows of 64 bytes. Its memory is TensorFlow's own, and must not be written to
            afterwards.
        arguments : sequence of numpy.ndarray
            The values of the slices that take an argument, 64-byte aligned. They must not be written to afterwards.
        """
        tf.raw_ops.StatefulPartitionedCall(
            args=[*self._handles, slab, *arguments], Tout=[], f=self, config_proto=_CONFIG_BYTES
        )


class _Definition:
    """The definition of an ``AssignFunction`` (source: TensorFlow's ``function.proto``)."""

    def __init__(self, name: str, slices: Sequence[SlabSlice], row: int) -> None:
        self.proto = FunctionDef()
        self.proto.signature.name, self.proto.signature.is_stateful = name, True
        self._number = tf.as_dtype(slices[0].target.dtype).as_datatype_enum
        for i in range(len(slices)):
            self._input(f"handle_{i}", _RESOURCE)
        self._input("slab", self._number)
        sizes, axis = self._constant("rows", [piece.rows for piece in slices]), self._constant("axis", 0)
        self._node("SplitV", "split", ["slab", sizes, axis], T=self._number, Tlen=_INT32)
        self.proto.node_def[-1].attr["num_split"].i = len(slices)
        for i, piece in enumerate(slices):
            if piece.is_argument:
                self._input(f"value_{i}", self._number)
            self._assign(i, piece.target, f"value_{i}" if piece.is_argument else self._value(i, piece, row))

    def _value(self, i: int, piece: SlabSlice, row: int) -> str:
        """Give rows of the slab a variable's shape; return the name of the result."""
        value, count = f"split:output:{i}", math.prod(piece.target.shape)
        if count != piece.rows * row:
            flat = self._reshaped(value, f"flat_{i}", [-1])
            begin, size = self._constant(f"begin_{i}", [0]), self._constant(f"size_{i}", [count])
            self._node("Slice", f"slice_{i}", [flat, begin, size], T=self._number, Index=_INT32)
            value = f"slice_{i}:output:0"
        return self._reshaped(value, f"reshape_{i}", list(piece.target.shape))

    def _reshaped(self, value: str, name: str, shape: list[int]) -> str:
        self._node("Reshape", name, [value, self._constant(f"{name}_shape", shape)], T=self._number, Tshape=_INT32)
        return f"{name}:output:0"

    def _assign(self, i: int, target: Target, value: str) -> None:
        inputs = [f"handle_{i}", value]
        if reads_copy(target.resource, target.nbytes):
            self._node("DisableCopyOnRead", f"read_{i}", [f"handle_{i}"], T=_RESOURCE)
            inputs.append(f"^read_{i}")
        self._node("AssignVariableOp", f"assign_{i}", inputs, dtype=self._number)
        self.proto.node_def[-1].attr["validate_shape"].b = True
        self.proto.signature.control_output.append(f"done_{i}")
        self.proto.control_ret[f"done_{i}"] = f"assign_{i}"

    def _input(self, name: str, number: Any) -> None:
        self.proto.signature.input_arg.add(name=name, type=number)

    def _constant(self, name: str, value: int | list[int]) -> str:
        self._node("Const", name, [], dtype=_INT32)
        tensor = tf.make_tensor_proto(np.asarray(value, dtype=np.int32))
        self.proto.node_def[-1].attr["value"].tensor.CopyFrom(tensor)
        return f"{name}:output:0"

    def _node(self, op: str, name: str, inputs: Sequence[str], **types: Any) -> None:
        node = self.proto.node_def.add(name=name, op=op, input=inputs)
        for attribute, number in types.items():
            node.attr[attribute].type = number
