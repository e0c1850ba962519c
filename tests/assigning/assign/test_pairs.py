"""``fastassign.assign``, eagerly: pairs, of which later ones win."""

import numpy as np
import pytest

import fastassign as fa
from support.pairs import ORDINARY, SHAPE, holds, read, values, variable


@pytest.mark.parametrize("reverse", [False, True])
def test_later_values_win(reverse):
    made, other = variable(), variable()
    pairs = [(made, values(seed=1)), (other, values(seed=2)), (made, values(seed=3))]
    report = fa.assign(pairs[::-1] if reverse else pairs)
    assert holds(made, values(seed=1 if reverse else 3)) and holds(other, values(seed=2))
    assert report.assigned == 2


@pytest.mark.parametrize("kind", ["keras", "tf_keras_mixed"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 1, 0), (1, 0, 1)])
def test_later_values_win_whatever_stands_for_the_variable(order, kind):
    """A Keras variable, and the one of TensorFlow that it holds."""
    made = ORDINARY[kind]()
    names = (made, made._value if kind == "keras" else made._variable)
    fa.assign([(names[which], np.full(SHAPE, position)) for position, which in enumerate(order)])
    assert (read(made) == len(order) - 1).all()


@pytest.mark.parametrize("empty", [[], (), {}.items(), iter([])])
def test_nothing(empty):
    report = fa.assign(empty)
    assert report.assigned == 0 and report.routes == {} and str(report)


def test_pairs_from_a_generator():
    made = [variable() for _ in range(3)]
    report = fa.assign((each, values(seed=seed)) for seed, each in enumerate(made))
    assert report.assigned == 3
    assert all(holds(each, values(seed=seed)) for seed, each in enumerate(made))


def test_many_variables():
    made = [variable((i % 7, 3), "float16" if i % 2 else "float32") for i in range(300)]
    fa.assign((each, np.full(each.shape, i)) for i, each in enumerate(made))
    assert all((read(each) == i).all() for i, each in enumerate(made))
