"""``deferred_init``: models built without initial values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastassign.targets.discover import check_tensorflow


@contextmanager
def deferred_init() -> Iterator[None]:
    """Build models without making initial values: each variable gets its own when it is first used, or loaded.

    Around code that builds a model of Keras 3 or tf_keras whose weights come from a file:

    >>> with fa.deferred_init():  # doctest: +SKIP
    ...     model = build()
    >>> fa.load_weights(model, path)  # doctest: +SKIP

    Variables that the file does not cover get the initial value that their own initialiser makes, at the first use.
    Initialisers of Keras 3 hold their seeds, so the values are those that building without this would give; tf_keras
    draws them from TensorFlow's global generator, where the order of the draws matters.

    Variables of a ``tf.distribute`` strategy, of TensorFlow 1 graphs, with values given as arrays, or under another
    ``tf.variable_creator_scope`` are made as usual. Holds for the thread that enters it.
    """
    check_tensorflow()
    from fastassign.targets.deferred import deferred

    with deferred():
        yield
