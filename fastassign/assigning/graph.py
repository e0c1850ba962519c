"""Variables of TensorFlow 1 graphs: one placeholder and one assign op each, made once and fed ever after.

Keras does the same, and keeps both on the variable as ``_assign_placeholder`` and ``_assign_op``
(``batch_set_value`` and ``set_value`` in tf_keras' ``backend.py``). The names here are the same, so that Keras finds
our ops, and we find those of Keras. The run differs: Keras fetches the outputs of its assign ops, which brings every
weight back as an array.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.core.protobuf.config_pb2 import CallableOptions

from fastassign.errors import Mismatch
from fastassign.targets.target import Target
from fastassign.targets.variables import is_ref, static_shape

if TYPE_CHECKING:
    import numpy as np

# The most sets of variables for which a session keeps a way to feed them; TensorFlow keeps an executor for each.
_KEPT = 256

# Only one thread at a time may add ops to a graph.
_building = threading.Lock()

_feeds_lock = threading.Lock()


def prepare(graph: Any, targets: Sequence[Target]) -> None:
    """Make the placeholders and assign ops that are missing, all at once.

    Parameters
    ----------
    graph : tf.Graph
        The graph of the variables.
    targets : sequence of Target
        The variables to assign.

    Raises
    ------
    Mismatch
        The graph is finalized, but ops are missing.
    """
    with _building:
        missing = {id(target.variable): target for target in targets if not _is_prepared(target)}
        if not missing:
            return
        if graph.finalized:
            raise Mismatch(
                f"the graph is finalized, but lacks the assign ops of {len(missing)} of its variables",
                variable=next(iter(missing.values())).name,
                hint="load or assign once before graph.finalize(): the ops are kept and used again",
            )
        _build(graph, list(missing.values()))


def _is_prepared(target: Target) -> bool:
    found = getattr(target.variable, "_assign_op", None)
    # The ops belong to the variable's own graph, unless the variable was copied.
    return found is not None and _operation(found).graph is target.graph


def _build(graph: Any, targets: Sequence[Target]) -> None:
    # All are made by one import: for 1,000 pairs that takes 0.2 s, op by op 0.5 s.
    definition = tf.compat.v1.GraphDef()
    definition.versions.CopyFrom(graph.graph_def_versions)
    outside = {}
    for i, target in enumerate(targets):
        ref = is_ref(target.resource)
        handle, dtype = f"variable_{i}:0", tf.as_dtype(target.dtype).as_datatype_enum
        outside[handle] = target.resource._ref() if ref else target.resource.handle  # type: ignore[union-attr] # see `prepare`
        placeholder = definition.node.add(name=f"value_{i}", op="Placeholder")
        placeholder.attr["dtype"].type = dtype
        # The dimensions are left open, as in Keras: its own code may feed a variable that changes its shape.
        shape, declared = placeholder.attr["shape"].shape, static_shape(target.resource)
        shape.unknown_rank = declared is None
        for _ in declared or ():
            shape.dim.add(size=-1)
        assign = definition.node.add(
            name=f"assign_{i}", op="Assign" if ref else "AssignVariableOp", input=[handle, f"value_{i}:0"]
        )
        assign.attr["T" if ref else "dtype"].type = dtype
        # Our own values are checked before, but Keras' `set_value` may feed this op a value of another shape.
        assign.attr["validate_shape"].b = (
            declared is not None and None not in declared and getattr(target.resource, "_validate_shape", True)
        )
    wanted = [name for i in range(len(targets)) for name in (f"value_{i}:0", f"assign_{i}")]
    # None of the caller's scopes apply, because the ops outlive them.
    with (
        graph.as_default(),
        graph.control_dependencies(None),
        graph.device(None),
        graph.colocate_with(None, ignore_existing=True),
        graph.name_scope(None),
    ):
        made = tf.import_graph_def(definition, input_map=outside, return_elements=wanted, name="fastassign")
    for i, target in enumerate(targets):
        target.variable._assign_placeholder, target.variable._assign_op = made[2 * i : 2 * i + 2]


def feed(session: Any, targets: Sequence[Target], values: Sequence[np.ndarray[Any, Any]]) -> None:
    """Assign values in one run, and fetch nothing.

    Parameters
    ----------
    session : tf.compat.v1.Session
        The session, or a wrapper of one (``MonitoredSession``).
    targets : sequence of Target
        The variables to assign, after ``prepare``.
    values : sequence of numpy.ndarray
        Their values: 64-byte aligned, of the variables' dtypes. TensorFlow keeps the arrays as the variables' values,
        so they must not be written to afterwards.
    """
    names = tuple(target.variable._assign_placeholder.name for target in targets)
    make_callable = getattr(session, "_make_callable_from_options", None)
    if make_callable is None:
        session.run(_operations(targets), dict(zip(names, values, strict=True)))
        return
    with _feeds_lock:
        kept = _feeds_of(session)
        run = kept.get(names)
        if run is not None:
            kept.move_to_end(names)
    if run is None:
        # tf_keras runs its own functions like this. With 1,000 variables a call takes 1.5 ms, Session.run 33 ms, and
        # make_callable on a group of the ops 29 ms.
        options = CallableOptions(feed=names, target=[operation.name for operation in _operations(targets)])
        run = make_callable(options)
        with _feeds_lock:
            kept[names] = run
            while len(kept) > _KEPT:
                kept.popitem(last=False)
    run(*values)


def _feeds_of(session: Any) -> OrderedDict[tuple[str, ...], Callable[..., Any]]:
    # They are kept on the session, because they refer to it: a table with weak keys would keep both for ever.
    if not hasattr(session, "_fastassign_feeds"):
        session._fastassign_feeds = OrderedDict()
    found: OrderedDict[tuple[str, ...], Callable[..., Any]] = session._fastassign_feeds
    return found


def _operations(targets: Sequence[Target]) -> list[Any]:
    return [_operation(target.variable._assign_op) for target in targets]


def _operation(op: Any) -> Any:
    # Keras keeps the result of its assign: a tensor, or an object that stands for one.
    return op if isinstance(op, tf.Operation) else op.op
