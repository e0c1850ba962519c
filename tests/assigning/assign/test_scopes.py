"""``fastassign.assign`` inside of functions, tapes, strategies, scopes, devices and threads."""

import threading
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import fastassign as fa
from support.pairs import ORDINARY, SHAPE, holds, read, two_devices, values, variable


def test_inside_a_traced_function():
    """As for stock, the values become part of the function."""
    found = []
    for assign in (tf_keras.backend.batch_set_value, fa.assign):
        made, small = variable(), keras.Variable(0.0)
        step = traced(partial(assign, [(made, values()), (small._value, 3)]), made, small)
        first = step().numpy()
        made.assign(tf.zeros(SHAPE))
        small.assign(0)
        found.append((first, step().numpy(), read(made), read(small)))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    assert found[1][2].tobytes() == values().tobytes() and found[1][3] == 3


def traced(work, made, small):
    """A function that assigns, and returns what it sees then."""

    @tf.function(autograph=False)
    def step():
        work()
        return made + small._value

    return step


def test_tensors_of_a_traced_function_are_no_values():
    made = variable()

    @tf.function(autograph=False)
    def step(value):
        fa.assign([(made, value)])

    with pytest.raises(NotImplementedError, match="symbolic"):
        step(tf.ones(SHAPE))
    assert not read(made).any()


def test_after_a_traced_function_was_made():
    """What is kept of a variable while a function is traced does not hold outside, nor the reverse."""
    made = variable()
    for _ in range(2):
        assert fa.assign([(made, values())]).routes == {"arena": 1}
        step = tf.function(lambda: fa.assign([(made, values(seed=1))]).routes["assign"], autograph=False)
        assert step() == 1
        assert holds(made, values(seed=1))


def test_values_that_a_function_sees():
    made = variable(())
    double = tf.function(lambda: 2 * made)
    for value in (1, 2, 3):
        fa.assign([(made, value)])
        assert double().numpy() == 2 * value


def test_inside_of_a_gradient_tape():
    made, x = variable(()), tf.Variable(2.0)
    with tf.GradientTape() as tape:
        fa.assign([(made, 3)])
        y = made * x
    assert [float(g) for g in tape.gradient(y, [made, x])] == [2, 3]


@pytest.mark.parametrize("kind", ["mirrored", "mirrored_keras"])
def test_inside_of_a_strategy(kind):
    with two_devices().scope():
        made = ORDINARY[{"mirrored": "tf", "mirrored_keras": "keras"}[kind]]()
        fa.assign([(made, values())])
    parts = (made._value if kind == "mirrored_keras" else made).values
    assert all(holds(part, values()) for part in parts)


def test_inside_of_a_stateless_scope():
    """Keras' own assign puts the value there; the variable keeps its own."""
    one, other = ORDINARY["keras"](), ORDINARY["keras"]()
    with keras.StatelessScope() as scope:
        one.assign(values())
        fa.assign([(other, values())])
        assert np.asarray(scope.get_current_value(other)).tobytes() == values().tobytes()
    assert not read(one).any() and not read(other).any()


def test_inside_of_a_device():
    made = variable()
    with tf.device("CPU:1"):
        fa.assign([(made, values())])
    assert holds(made, values()) and (made + 1).numpy().tobytes() == (values() + 1).tobytes()


def test_many_threads():
    made = [[variable() for _ in range(5)] for _ in range(4)]
    failures, barrier = [], threading.Barrier(4)

    def work(i):
        try:
            barrier.wait(120)
            for round_ in range(10):
                fa.assign([(each, np.full(SHAPE, 100 * i + round_)) for each in made[i]])
                assert all((read(each) == 100 * i + round_).all() for each in made[i])
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []
