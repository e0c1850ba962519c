"""Many assignments as one call: a function of assign ops, made once for a set of variables and called ever after.

TensorFlow takes 10 to 15 microseconds for an eager op, and 30 when the other core copies memory meanwhile; in a
function an assignment takes 2. Small variables come in one argument, the tensor of their arena, and are cut out of it
inside: an array as an argument costs 8 microseconds more; taken by DLPack 2, but then the thread that lets go of the
old value waits for the interpreter's lock, which made a load slower than without a function. The memory is
TensorFlow's own, so what is cut out of it may be updated in place.

Making the function and its first call cost 0.3 milliseconds a variable, so only a ``Loader``, which comes again, makes
any. A traced ``tf.function`` would do the same for 2 milliseconds a variable (its ops are made one by one in Python,
then rewritten by an optimiser that finds nothing to do), and spends 13 microseconds an argument in Python each time.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.python.eager import context

from fastassign.assigning.host import reads_copy
from fastassign.targets.target import Target
from fastassign.targets.variables import numpy_dtype_of

# The graph of a function is assign ops and nothing else: there is nothing to optimise.
_CONFIG = tf.compat.v1.ConfigProto()
_CONFIG.graph_options.rewrite_options.disable_meta_optimizer = True

_numbers = itertools.count()

_RESOURCE, _INT32 = tf.resource.as_datatype_enum, tf.int32.as_datatype_enum


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Variables whose values stand one after the other in one tensor.

    Attributes
    ----------
    targets : sequence of Target
        The variables, all of one dtype.
    rooms : sequence of int
        Bytes from each value to the next, multiples of 64; together the whole tensor.
    slab : tensor
        The values, of one dimension.
    """

    targets: Sequence[Target]
    rooms: Sequence[int]
    slab: Any


class _Function:
    """A function of TensorFlow's runtime; goes when nobody refers to it any more."""

    def __init__(self, single: Sequence[Target], packed: Packed | None) -> None:
        # What the op that calls it wants: an object with a name.
        self.name = f"__fastassign_assign_{next(_numbers)}"
        targets = [*single, *(packed.targets if packed else ())]
        self._handles = [target.resource.handle for target in targets]  # type: ignore[union-attr] # see `assign`
        runtime = context.context()
        runtime.add_function_def(_Definition(self.name).of(single, packed))
        weakref.finalize(self, runtime.remove_function, self.name).atexit = False

    def __call__(self, values: list[Any]) -> None:
        tf.raw_ops.StatefulPartitionedCall(
            args=self._handles + values, Tout=[], f=self, config_proto=_CONFIG.SerializeToString()
        )


class FusedAssignments:
    """The functions of a loader, by the variables that they assign. May be used from any thread."""

    def __init__(self) -> None:
        self._functions: dict[tuple[int, ...], _Function] = {}
        self._lock = threading.Lock()

    def assign(self, targets: Sequence[Target], values: Sequence[Any], packed: Packed | None = None) -> None:
        """Make values the values of plain variables, without copying them.

        Parameters
        ----------
        targets : sequence of Target
            Plain resource variables of one CPU device. Kept by the caller for as long as this object lives.
        values : sequence of tensor or numpy.ndarray
            Their values, as for ``host.assign``.
        packed : Packed, optional
            More of the same device. What does not fill its room to the next multiple of 64 bytes is copied.
        """
        key = (*map(id, targets), 0, *(map(id, packed.targets) if packed else ()))
        with self._lock:
            function = self._functions.get(key)
            if function is None:
                function = self._functions[key] = _Function(targets, packed)
        function([*values, packed.slab] if packed else list(values))


class _Definition:
    """The definition of a function, put together node by node (source: TensorFlow's ``function.proto``)."""

    def __init__(self, name: str) -> None:
        self._proto = FunctionDef()
        self._proto.signature.name, self._proto.signature.is_stateful = name, True

    def of(self, single: Sequence[Target], packed: Packed | None) -> Any:
        """Return a function that takes all handles, the single values, and the packed ones in one."""
        targets = [*single, *(packed.targets if packed else ())]
        for i in range(len(targets)):
            self._proto.signature.input_arg.add(name=f"handle_{i}", type=_RESOURCE)
        for i, target in enumerate(single):
            self._proto.signature.input_arg.add(name=f"value_{i}", type=_number(target))
        sources = [f"value_{i}" for i in range(len(single))]
        if packed:
            self._proto.signature.input_arg.add(name="slab", type=_number(packed.targets[0]))
            sources += self._cut(packed)
        for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
            self._assign(i, target, source)
        return self._proto

    def _assign(self, i: int, target: Target, source: str) -> None:
        inputs = [f"handle_{i}", source]
        if reads_copy(target.resource, target.nbytes):
            self._node("DisableCopyOnRead", f"read_{i}", [f"handle_{i}"], {"T": _RESOURCE})
            inputs.append(f"^read_{i}")
        self._node("AssignVariableOp", f"assign_{i}", inputs, {"dtype": _number(target)})
        self._proto.node_def[-1].attr["validate_shape"].b = True
        self._proto.signature.control_output.append(f"done_{i}")
        self._proto.control_ret[f"done_{i}"] = f"assign_{i}"

    def _cut(self, packed: Packed) -> list[str]:
        """Cut the slab into values of the variables' shapes."""
        number = _number(packed.targets[0])
        size = numpy_dtype_of(packed.targets[0].dtype).itemsize
        sizes = [room // size for room in packed.rooms]
        inputs = ["slab", self._constant("sizes", sizes), self._constant("axis", 0)]
        self._node("SplitV", "split", inputs, {"T": number, "Tlen": _INT32})
        self._proto.node_def[-1].attr["num_split"].i = len(sizes)
        sources = []
        for i, target in enumerate(packed.targets):
            source = f"split:output:{i}"
            count = math.prod(target.shape)
            if count != sizes[i]:
                inputs = [source, self._constant(f"begin_{i}", [0]), self._constant(f"size_{i}", [count])]
                self._node("Slice", f"slice_{i}", inputs, {"T": number, "Index": _INT32})
                source = f"slice_{i}:output:0"
            if len(target.shape) != 1:
                inputs = [source, self._constant(f"shape_{i}", list(target.shape))]
                self._node("Reshape", f"reshape_{i}", inputs, {"T": number, "Tshape": _INT32})
                source = f"reshape_{i}:output:0"
            sources.append(source)
        return sources

    def _constant(self, name: str, value: int | list[int]) -> str:
        self._node("Const", name, [], {"dtype": _INT32})
        tensor = tf.make_tensor_proto(np.asarray(value, dtype=np.int32))
        self._proto.node_def[-1].attr["value"].tensor.CopyFrom(tensor)
        return f"{name}:output:0"

    def _node(self, op: str, name: str, inputs: Sequence[str], types: dict[str, Any]) -> None:
        node = self._proto.node_def.add(name=name, op=op, input=inputs)
        for attribute, number in types.items():
            node.attr[attribute].type = number


def _number(target: Target) -> Any:
    return tf.as_dtype(target.dtype).as_datatype_enum
