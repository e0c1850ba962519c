"""The session that runs the assignments of a TensorFlow 1 graph."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from fastassign.errors import Mismatch, NoSession, Unsupported
from fastassign.targets.target import Target


def find_session(session: Any, targets: Iterable[Target]) -> Any | None:
    """Return the session to run, or ``None`` where all variables are eager.

    The order is Keras' own: the session given, the default session, for tf_keras' variables its global session.

    Parameters
    ----------
    session : tf.compat.v1.Session, optional
        The session that the caller gave.
    targets : iterable of Target
        The variables to assign.

    Raises
    ------
    NoSession
        The variables belong to a graph, and there is no session that runs it.
    Mismatch
        Session and variables do not belong together.
    Unsupported
        A variable of a graph that is partitioned, or distributed by a strategy.
    """
    targets = list(targets)
    graphs = {id(target.graph): target.graph for target in targets}
    if not targets or list(graphs.values()) == [None]:
        if session is not None and targets:
            raise Mismatch(
                "a session was given, but the variables are eager, so no session holds their values",
                variable=targets[0].name,
                hint="leave session= out",
            )
        return None
    if len(graphs) > 1:
        raise Mismatch(
            "the variables belong to different graphs, or some are eager and some are not",
            hint="assign the variables of each graph in a separate call",
        )
    graph: Any = targets[0].graph
    for target in targets:
        if target.resource is None:
            raise Unsupported(
                f"{target.name} consists of several variables (partitioned, or distributed by a strategy) in a "
                "TensorFlow 1 graph",
                variable=target.name,
            )
    if session is not None:
        _check_open(session)
        if session.graph is not graph:
            raise Mismatch(
                "the session runs another graph than the one that the variables belong to",
                variable=targets[0].name,
                hint="give the session that was made for the variables' graph",
            )
        return session
    default = tf.compat.v1.get_default_session()
    if default is not None and default.graph is graph:
        _check_open(default)
        return default
    backend = sys.modules.get("tf_keras.src.backend")
    if default is None and backend is not None and _are_kept_by(backend, graph, targets):
        with graph.as_default():
            # Not `get_session`, which would first run the initialisers of the values to be replaced.
            return backend._get_session()
    raise NoSession(
        "the variables belong to a TensorFlow 1 graph, and no session was given for that graph"
        if default is None
        else "the variables belong to another graph than the one that the default session runs",
        variable=targets[0].name,
        hint="pass session=, or call this inside `with session.as_default():`",
    )


def _check_open(session: Any) -> None:
    # A closed session that wraps another one has no graph any more.
    if getattr(session, "_closed", False) or session.graph is None:
        raise NoSession("the session is closed", hint="its values are lost with it: make a new session")


def mark_initialized(session: Any, targets: Iterable[Target]) -> None:
    """Mark variables as initialised in tf_keras' own session, as it marks those that it initialises itself.

    Otherwise its next ``get_session`` would check each, and add an op to the graph for each.
    """
    backend = sys.modules.get("tf_keras.src.backend")
    if backend is None or session is not getattr(backend._SESSION, "session", None):
        return
    for target in targets:
        resource: Any = target.resource
        target.variable._keras_initialized = resource._keras_initialized = True


def _are_kept_by(backend: Any, graph: Any, targets: list[Target]) -> bool:
    """Whether tf_keras made these variables: it lists the ones that it has to initialise."""
    kept = backend._GRAPH_VARIABLES.get(graph, ())
    return all(target.variable in kept or target.resource in kept for target in targets)
