"""The ops that feed variables: made once, without what stands around."""

import numpy as np
import pytest
import tensorflow as tf
from tf_keras.src import backend as K

import fastassign as fa
from fastassign.assigning import graph as graph_module
from support.graph_modes import variable_of
from support.graphs import BOTH, count_ops, v1, value


def made_by(graph, session, variable):
    """The ops that an assignment made."""
    count = count_ops(graph)
    fa.assign([(variable, [1, 2, 3])], session)
    return graph.get_operations()[count:]


@BOTH
def test_ops_inherit_nothing_of_the_scopes_around(use_resource, graph, session):
    variable, other = (variable_of(name, (3,), "float32", use_resource) for name in ("v", "o"))
    must_not_run = v1.Assert(tf.constant(False), ["the scope's dependency ran"])
    with (
        tf.name_scope("name"),
        v1.variable_scope("scope"),
        tf.device("/CPU:1"),
        tf.control_dependencies([must_not_run]),
        v1.colocate_with(other.op),
    ):
        made = made_by(graph, session, variable)
    assert len(made) == 2
    for op in made:
        assert op.name.startswith("fastassign") and op.device == "" and op.control_inputs == []
        assert f"loc:@{other.op.name}".encode() not in op.colocation_groups()
    assert value(session, variable).tolist() == [1, 2, 3]


def test_ops_stand_outside_of_a_branch(graph, session):
    variable = variable_of("v", (3,), "float32", use_resource=True)
    made = []
    was_on = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        tf.cond(v1.placeholder(tf.bool, ()), lambda: made.extend(made_by(graph, session, variable)) or 1, lambda: 2)
    finally:
        if was_on:
            v1.enable_control_flow_v2()
    assert [op._get_control_flow_context() for op in made] == [None, None]
    assert value(session, variable).tolist() == [1, 2, 3]


def test_ops_are_made_in_the_graph_of_the_variables(graph, session):
    variable = variable_of("v", (3,), "float32", use_resource=True)
    with tf.Graph().as_default() as other:
        made = made_by(graph, session, variable)
    assert len(made) == 2 and count_ops(other) == 0
    assert value(session, variable).tolist() == [1, 2, 3]


def test_many_variables_are_fed_at_once(graph, session, monkeypatch):
    variables = [variable_of(f"v{i}", (i % 5,), "float32", use_resource=i % 3 > 0) for i in range(60)]
    feeds, count, feed = [], count_ops(graph), graph_module.feed

    def spy(session, targets, values):
        feeds.append(len(targets))
        feed(session, targets, values)

    monkeypatch.setattr(graph_module, "feed", spy)
    report = fa.assign([(variable, np.full(i % 5, i)) for i, variable in enumerate(variables)])
    assert feeds == [60] and report.routes == {"feed": 60}
    assert count_ops(graph) == count + 120
    found = session.run([variable.value() for variable in variables])
    assert all(array.tolist() == [i] * (i % 5) for i, array in enumerate(found))


def test_only_so_many_sets_of_variables_are_kept(graph, session, monkeypatch):
    monkeypatch.setattr(graph_module, "_KEPT", 2)
    variables = [variable_of(f"v{i}", (), "float32", use_resource=True) for i in range(4)]
    for round_ in (1, 2):
        for i, variable in enumerate(variables):
            fa.assign([(variable, round_ * i)])
            assert len(session._fastassign_feeds) <= 2
        assert session.run(variables) == [round_ * i for i in range(4)]


@BOTH
def test_keras_still_refuses_wrong_shapes_after_us(use_resource, graph, session):
    """Its ``set_value`` takes our op, and relies on it to look at the shape."""
    variable = variable_of("v", (3,), "float32", use_resource)
    fa.assign([(variable, [1, 2, 3])])
    with pytest.raises(tf.errors.InvalidArgumentError):
        K.set_value(variable, np.zeros(5))
    assert value(session, variable).tolist() == [1, 2, 3]


@BOTH
def test_ops_of_keras_are_used(use_resource, graph, session):
    variable = variable_of("v", (3,), "float32", use_resource)
    K.set_value(variable, np.zeros(3))
    count = count_ops(graph)
    for _ in range(2):
        fa.assign([(variable, [1, 2, 3])])
    assert count_ops(graph) == count
    assert value(session, variable).tolist() == [1, 2, 3]


def test_variables_on_another_device(graph, session):
    with tf.device("/CPU:1"):
        variable = variable_of("v", (3,), "float32", use_resource=True)
    fa.assign([(variable, [1, 2, 3])])
    assert value(session, variable).tolist() == [1, 2, 3]
