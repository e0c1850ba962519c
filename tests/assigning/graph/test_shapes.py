"""Values that do not fit, and open shapes, before anything runs."""

import numpy as np
import pytest
from tf_keras.src import backend as K

import fastassign as fa
from support import graph_modes
from support.graph_modes import variable_of
from support.graphs import BOTH, count_ops, v1, value


@BOTH
def test_wrong_shape_for_a_variable_that_was_never_initialised(use_resource, graph, session):
    variable = variable_of("v", (3,), "float32", use_resource)
    count = count_ops(graph)
    with pytest.raises(fa.Mismatch, match=r"\(3,\), and the assigned value shape \(5,\)"):
        fa.assign([(variable, np.ones(5))])
    assert count_ops(graph) == count
    assert list(session.run(v1.report_uninitialized_variables([variable]))) == [b"v"]


@BOTH
def test_right_shape_initialises(use_resource, graph, session):
    variable = variable_of("v", (3,), "float32", use_resource)
    fa.assign([(variable, [1, 2, 3])])
    assert list(session.run(v1.report_uninitialized_variables([variable]))) == []
    assert value(session, variable).tolist() == [1, 2, 3]


def test_nothing_is_assigned_where_one_does_not_fit(graph, session):
    variables = [variable_of(f"v{i}", (3,), "float32", use_resource=i > 0) for i in range(3)]
    session.run(v1.global_variables_initializer())
    with pytest.raises(fa.Mismatch):
        fa.assign([(variables[0], np.ones(3)), (variables[1], np.ones(3)), (variables[2], np.ones(4))])
    assert not np.any(session.run([variable.value() for variable in variables]))


def test_too_large_for_the_budget(files, graph, session):
    model = graph_modes.build("small")
    count = count_ops(graph)
    with pytest.raises(fa.Budget):
        fa.load_weights(model, files / "small.h5", options=fa.LoadOptions(max_staging_bytes=64))
    assert count_ops(graph) == count


def open_variable(name, shape, declared, use_resource):
    """A variable whose shape is open."""
    initial = v1.placeholder_with_default(np.zeros(shape, np.float32), declared)
    return v1.Variable(initial, validate_shape=False, use_resource=use_resource, name=name)


@BOTH
def test_open_shapes(use_resource, graph, session):
    rows, anything = (
        open_variable(name, (2, 3), shape, use_resource) for name, shape in (("r", (None, 3)), ("a", None))
    )
    count = None
    for shape, other in (((4, 3), (5,)), ((1, 3), ()), ((0, 3), (2, 2, 2))):
        one, two = np.random.default_rng(0).normal(size=shape), np.full(other, 3)
        fa.assign([(rows, one), (anything, two)])
        assert value(session, rows).tobytes() == one.astype(np.float32).tobytes()
        assert value(session, anything).tolist() == two.tolist()
        # Each `value` of a test reads by an op of its own.
        assert count is None or count_ops(graph) - count <= 2 * use_resource
        count = count_ops(graph)


def test_open_shapes_that_do_not_fit(graph, session):
    rows = open_variable("r", (2, 3), (None, 3), use_resource=True)
    session.run(rows.initializer)
    for shape in ((3, 4), (3,)):
        with pytest.raises(ValueError, match="Shape mismatch") as stock:
            rows.assign(np.zeros(shape, np.float32))
        with pytest.raises(fa.Mismatch) as ours:
            fa.assign([(rows, np.zeros(shape))])
        assert str(ours.value) == str(stock.value)
    assert value(session, rows).shape == (2, 3)


def test_open_shapes_after_keras_made_an_op_for_another_rank(graph, session):
    # Of the old kind Keras itself changes none.
    variable = open_variable("a", (2, 3), None, use_resource=True)
    K.set_value(variable, np.zeros(3))
    fa.assign([(variable, [[1, 2], [3, 4]])])
    assert value(session, variable).tolist() == [[1, 2], [3, 4]]


@BOTH
def test_keras_may_change_open_shapes_after_us(use_resource, graph, session):
    rows = open_variable("r", (2, 3), (None, 3), use_resource)
    fa.assign([(rows, np.ones((4, 3)))])
    count = count_ops(graph)
    K.set_value(rows, np.zeros((7, 3)))
    assert count_ops(graph) == count
    assert value(session, rows).shape == (7, 3)
