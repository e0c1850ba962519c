"""What the tests of TensorFlow 1 graphs build, and how they look at it."""

import pytest
import tensorflow as tf
from tensorflow.python.eager.context import eager_mode

import fastassign as fa
from support import graph_modes
from support.options import load_options

v1 = tf.compat.v1
BOTH = pytest.mark.parametrize("use_resource", [True, False], ids=["resource", "ref"])


def count_ops(graph):
    return len(graph.get_operations())


def value(session, variable):
    return session.run(variable.value())


def holds(session, model, values):
    """Whether the variables of a model, or these, have these values."""
    variables = getattr(model, "weights", model)
    return graph_modes.same(session.run([variable.value() for variable in variables]), values)


def read(eager):
    """Return the value of an eager variable, inside of a graph."""
    with eager_mode():
        return eager.numpy()


TINY = {"read_bytes": 4096, "window_bytes": 8192, "max_staging_bytes": 8192, "index_cache": False}


def tiny_plan(variables, path, *, threads=2, **how):
    return fa.plan(variables, path, options=load_options(threads=threads, **TINY), **how)
