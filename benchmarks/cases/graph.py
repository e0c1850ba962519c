"""TensorFlow 1 sessions: tf_keras' ``batch_set_value``, one ``Session.run`` a variable, and fastassign."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastassign
from fastassign.benchmarks.cases.compare import timed

HEAD = ("case", "first call s", "ratio", "later call ms", "ratio", "one by one ms")

_FILE_LAYERS = 500


@dataclass(frozen=True, slots=True)
class GraphComparison:
    """Medians in seconds for one set of variables.

    Attributes
    ----------
    case : str
        Variables and bytes.
    stock_first, ours_first : float
        The first call in a graph, which creates its ops.
    stock, ours : float
        Later calls, in turns, in one graph.
    one_by_one : float or None
        A ``Session.run`` for each variable; ``None`` where it was not measured.
    """

    case: str
    stock_first: float
    ours_first: float
    stock: float
    ours: float
    one_by_one: float | None

    @property
    def row(self) -> tuple[str, ...]:
        """The comparison as the cells of ``HEAD``."""
        return (
            self.case,
            f"{self.stock_first:.2f} / {self.ours_first:.2f}",
            f"{self.stock_first / self.ours_first:.1f}",
            f"{self.stock * 1e3:.1f} / {self.ours * 1e3:.1f}",
            f"{self.stock / self.ours:.1f}",
            "" if self.one_by_one is None else f"{self.one_by_one * 1e3:.0f}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the medians and the ratios as JSON-ready data."""
        return {
            **asdict(self),
            "stock_over_ours_first": self.stock_first / self.ours_first,
            "stock_over_ours": self.stock / self.ours,
        }


def compare_assign(count: int, nbytes: int, *, repeats: int) -> GraphComparison:
    """Measure plain arrays in float32 variables.

    Parameters
    ----------
    count : int
        Variables.
    nbytes : int
        Bytes of each.
    repeats : int
        Runs behind each median.
    """
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=nbytes // 4).astype(np.float32) for _ in range(count)]

    def build() -> list[Any]:
        import tensorflow as tf

        zeros = tf.compat.v1.zeros_initializer()
        return [
            tf.compat.v1.get_variable(f"v{i}", (nbytes // 4,), tf.float32, initializer=zeros, use_resource=True)
            for i in range(count)
        ]

    def stock(variables: list[Any]) -> None:
        import tf_keras

        tf_keras.backend.batch_set_value(list(zip(variables, arrays, strict=True)))

    def ours(variables: list[Any]) -> None:
        fastassign.assign(zip(variables, arrays, strict=True))

    def one_by_one(variables: list[Any]) -> None:
        import tensorflow as tf

        session = tf.compat.v1.get_default_session()
        for variable, array in zip(variables, arrays, strict=True):
            # The ops exist already, because this compares only their execution.
            session.run(variable._assign_op, {variable._assign_placeholder: array})

    def check(variables: list[Any]) -> None:
        import tensorflow as tf

        values = tf.compat.v1.get_default_session().run(variables)
        for variable, value, array in zip(variables, values, arrays, strict=True):
            if value.tobytes() != array.tobytes():
                raise AssertionError(f"{variable.name} is not what was assigned")

    contest = _Contest(build, stock, ours, check, one_by_one)
    return contest.run(f"{count:,} x {nbytes / 1e3:.0f} KB", repeats)


def compare_load(folder: Path, *, repeats: int) -> GraphComparison:
    """Measure a tf_keras model of 1,000 variables, 200 KB each in the mean, loaded from a legacy file.

    Parameters
    ----------
    folder : pathlib.Path
        Where the file goes: 200 MB.
    repeats : int
        Runs behind each median.
    """
    path = folder / "graph.h5"

    def build() -> Any:
        import tf_keras

        # A kernel of 400 KB and a bias of 1 KB each: 200 MB in 1,000 variables.
        inputs = tf_keras.Input((400,))
        return tf_keras.Model(
            inputs, [tf_keras.layers.Dense(250, name=f"dense_{i}")(inputs) for i in range(_FILE_LAYERS)]
        )

    build().save_weights(path)

    def check(model: Any) -> None:
        catalog = fastassign.inspect(path)
        for weight, value in zip(model.weights, model.get_weights(), strict=True):
            if catalog[weight.name].read().tobytes() != value.tobytes():
                raise AssertionError(f"{weight.name} is not what the file holds")

    try:
        contest = _Contest(
            build,
            stock=lambda model: model.load_weights(str(path)),
            ours=lambda model: fastassign.load_weights(model, path),
            check=check,
        )
        return contest.run("1,000 from .h5, 200 MB", repeats)
    finally:
        path.unlink()


@dataclass(frozen=True, slots=True)
class _Contest:
    """Two ways to give the variables of a graph their values, or three.

    Attributes
    ----------
    build : callable
        Makes the variables, or a model, in the default graph.
    stock, ours, one_by_one : callable
        Give them their values.
    check : callable
        Raises if they have other values.
    """

    build: Callable[[], Any]
    stock: Callable[[Any], Any]
    ours: Callable[[Any], Any]
    check: Callable[[Any], None]
    one_by_one: Callable[[Any], Any] | None = None

    def run(self, case: str, repeats: int) -> GraphComparison:
        """Measure first calls, each in a graph of its own, and later calls in one graph."""
        first: dict[str, list[float]] = {"stock": [], "ours": []}
        for _ in range(max(repeats // 2, 1)):
            for name, way in (("stock", self.stock), ("ours", self.ours)):
                with _session():
                    target = _built(self.build)
                    first[name].append(timed(lambda: way(target)))  # noqa: B023 - called at once
                    self.check(target)
        later: dict[str, list[float]] = {"stock": [], "ours": [], "one_by_one": []}
        with _session():
            target = _built(self.build)
            self.stock(target)
            self.ours(target)
            ways = {"stock": self.stock, "ours": self.ours}
            if self.one_by_one is not None:
                ways["one_by_one"] = self.one_by_one
            for _ in range(repeats):
                for name, way in ways.items():
                    later[name].append(timed(lambda: way(target)))  # noqa: B023 - called at once
        return GraphComparison(
            case=case,
            stock_first=statistics.median(first["stock"]),
            ours_first=statistics.median(first["ours"]),
            stock=statistics.median(later["stock"]),
            ours=statistics.median(later["ours"]),
            one_by_one=statistics.median(later["one_by_one"]) if later["one_by_one"] else None,
        )


def _built(build: Callable[[], Any]) -> Any:
    import tensorflow as tf

    target = build()
    # Outside of the measurement, because both would need it.
    tf.compat.v1.get_default_session().run(tf.compat.v1.global_variables_initializer())
    return target


def _session() -> Any:
    import tensorflow as tf

    stack = contextlib.ExitStack()
    graph = tf.Graph()
    stack.enter_context(graph.as_default())
    stack.enter_context(tf.compat.v1.Session(graph=graph))
    return stack
