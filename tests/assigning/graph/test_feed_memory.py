"""The memory that variables are fed with."""

import gc

import numpy as np
import pytest
from tensorflow.python.eager.context import eager_mode

import fastassign as fa
from fastassign.runtime import process_runtime
from fastassign.streaming import buffers
from support.graph_modes import variable_of
from support.graphs import BOTH, v1, value

SIZES = pytest.mark.parametrize("size", [5, 1000, 300_000])

ARENAS = process_runtime().arenas


@BOTH
@SIZES
def test_arrays_may_change_after_the_call(size, use_resource, graph, session):
    variable = variable_of("v", (size,), "float32", use_resource)
    # Aligned as TensorFlow wants it: it would keep the array itself.
    array = buffers.aligned_array(4 * size).view(np.float32)
    array[:] = 1
    fa.assign([(variable, array)])
    array[:] = 2
    assert (value(session, variable) == 1).all()


@BOTH
@SIZES
def test_a_value_that_was_read_does_not_change(size, use_resource, graph, session):
    variable = variable_of("v", (size,), "float32", use_resource)
    fa.assign([(variable, np.full(size, 1))])
    kept = value(session, variable)
    for i in range(2, 6):
        fa.assign([(variable, np.full(size, i))])
    assert (kept == 1).all()
    assert (value(session, variable) == 5).all()


@SIZES
def test_a_value_that_another_variable_took_does_not_change(size, graph, session):
    """TensorFlow does not copy it: both variables hold the memory that the first was fed with."""
    variable, heir = (variable_of(name, (size,), "float32", use_resource=True) for name in ("v", "h"))
    inherit = heir.assign(variable.value()).op
    fa.assign([(variable, np.full(size, 1))])
    session.run(inherit)
    for i in range(2, 6):
        fa.assign([(variable, np.full(size, i))])
    assert (value(session, heir) == 1).all()


def test_values_that_training_changed_in_place(graph, session):
    """What a variable holds may be updated where it stands: then it is not given to the next either."""
    one, two = (variable_of(name, (1000,), "float32", use_resource=True) for name in ("a", "b"))
    add = one.assign_add(np.ones(1000, np.float32)).op
    for i in range(4):
        fa.assign([(one, np.full(1000, i))])
        session.run(add)
        session.run(add)
        fa.assign([(two, np.full(1000, -1))])
        assert (value(session, one) == i + 2).all()
        assert (value(session, two) == -1).all()


def test_memory_comes_back_when_variables_let_go(eager, graph):
    elements, nbytes = 5003, 20_032  # of this size there are no others

    def idle():
        with eager_mode():
            eager.assign_add(np.ones((4, 5), np.float32))  # TensorFlow lets go of arrays when it sees new ones
        return len(ARENAS._idle.get(nbytes, ()))

    session = v1.Session()
    variable = variable_of("v", (elements,), "float32", use_resource=True)
    fa.assign([(variable, np.ones(elements))], session)
    assert idle() == 0
    fa.assign([(variable, np.ones(elements))], session)
    assert idle() == 1
    before = ARENAS.idle_bytes
    session.close()
    del session
    gc.collect()
    assert idle() == 2
    assert ARENAS.idle_bytes >= before + nbytes


def test_memory_is_used_again(graph, session, monkeypatch):
    made = []
    aligned_array = buffers.aligned_array
    monkeypatch.setattr(buffers, "aligned_array", lambda nbytes: made.append(nbytes) or aligned_array(nbytes))
    variable = variable_of("v", (12_345,), "float32", use_resource=True)
    for i in range(10):
        fa.assign([(variable, np.full(12_345, i))])
        assert (value(session, variable) == i).all()
    assert 1 <= len(made) <= 3


def test_release_buffers(graph, session):
    variable = variable_of("v", (1000,), "float32", use_resource=True)
    for i in range(4):
        fa.assign([(variable, np.full(1000, i))])
    assert ARENAS.idle_bytes > 0
    fa.release_buffers()
    assert ARENAS.idle_bytes == 0 and not ARENAS._idle
    assert (value(session, variable) == 3).all()
    fa.assign([(variable, np.full(1000, 4))])
    assert (value(session, variable) == 4).all()
