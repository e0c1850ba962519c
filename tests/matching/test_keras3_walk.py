"""Our walk over Keras 3 models compared with Keras' own (``saving_lib._load_state``), on random models.

A model is described by plain data, so that the same one can be built again and again, and changed a little between
saving and loading: attributes renamed, removed, added, layers of other sizes. fastassign must load, skip, warn about
and refuse exactly the same as Keras.
"""

import random

import keras
import numpy as np
import pytest
from keras.src.saving import saving_lib

from fastassign.targets.keras3 import Keras3Targets
from support.differential import check, fresh, needs_keras_3_15, saved, twins
from support.profiles import seeds

L = keras.layers

# Some sort before "layers", some after; private ones come last.
NAMES = ["Upper", "alpha", "blocks", "head", "kids", "layer", "layers_of_mine", "mixer", "tail", "zeta", "_hidden",
         "_zz", "__dunder", "metric", "losses_of_mine", "a1", "a10", "a2"]  # fmt: skip


class Node(L.Layer):
    """A layer with variables of its own and any attributes that it is given."""

    def __init__(self, own=(), **kwargs):
        super().__init__(**kwargs)
        for i, (size, trainable) in enumerate(own):
            self.add_weight(shape=(size,), name=f"own{i}", trainable=trainable)
        self.built = True

    def build(self, shape=None):
        self.built = True


class Other(Node):
    """The same under another class name."""


class Shy(Node):
    """Properties that return layers, make lists, or raise."""

    @property
    def view(self):
        return getattr(self, "alpha", None)

    @property
    def all_of_them(self):
        return [*self._layers]

    @property
    def broken(self):
        raise RuntimeError("not now")

    kinds = ("a", "b")


SHARED = Node(((2, True),), name="class_attribute")


class WithClassAttribute(Node):
    """A layer that belongs to the class, not to the object."""

    common = SHARED


class Root(keras.Model):
    """A model without a graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.built = True

    def call(self, x):
        return x


class Maker:
    """Builds the objects of one description; a part that is shared there is one object here."""

    def __init__(self):
        self.shared = {}
        self.count = 0

    def name(self, kind):
        self.count += 1
        return f"{kind}_{self.count}"

    def make(self, spec):
        kind, *rest = spec
        if kind == "shared":
            key, inner = rest
            if key not in self.shared:
                self.shared[key] = self.make(inner)
            return self.shared[key]
        if kind in ("list", "tuple", "set"):
            return {"list": list, "tuple": tuple, "set": set}[kind](self.make(item) for item in rest[0])
        if kind == "dict":
            return {name: self.make(item) for name, item in rest[0]}
        if kind == "plain":
            return rest[0]
        return getattr(self, f"_{kind}")(*rest)

    def _node(self, cls, own, attributes):
        node = {"Node": Node, "Other": Other, "Shy": Shy, "WithClassAttribute": WithClassAttribute}[cls](
            own, name=self.name("node")
        )
        self._attach(node, attributes)
        return node

    def _attach(self, obj, attributes):
        for name, spec in attributes:
            setattr(obj, name, self.make(spec))

    def _dense(self, units, bias):
        layer = L.Dense(units, use_bias=bias, name=self.name("dense"))
        layer.build((None, 2))
        return layer

    def _norm(self, size):
        layer = L.BatchNormalization(name=self.name("norm"))
        layer.build((None, size))
        return layer

    def _dropout(self):
        return L.Dropout(0.5, name=self.name("drop"))

    def _scale(self):
        layer = L.Normalization(name=self.name("scale"))
        layer.build((None, 2))
        return layer

    def _einsum(self):
        layer = L.EinsumDense("ab,bc->ac", 3, bias_axes="c", name=self.name("einsum"))
        layer.build((None, 2))
        return layer

    def _embedding(self):
        layer = L.Embedding(4, 2, name=self.name("emb"))
        layer.build()
        return layer

    def _unbuilt(self):
        return L.Dense(3, name=self.name("unbuilt"))

    def _metric(self):
        return keras.metrics.Mean(name=self.name("mean"))

    def _loss(self):
        return keras.losses.MeanSquaredError(name=self.name("loss"))

    def _optimizer(self):
        return keras.optimizers.SGD(0.5, momentum=0.5, name=self.name("sgd"))

    def _sequential(self, units, attributes):
        model = keras.Sequential([keras.Input((2,)), *(self._dense_unbuilt(n) for n in units)], name=self.name("seq"))
        self._attach(model, attributes)
        return model

    def _dense_unbuilt(self, units):
        return L.Dense(units, name=self.name("dense"))

    def _functional(self, units, attributes):
        inputs = x = keras.Input((2,))
        for n in units:
            x = self._dense_unbuilt(n)(x)
        model = keras.Model(inputs, x, name=self.name("fun"))
        self._attach(model, attributes)
        return model

    def _wrapper(self, units):
        layer = L.TimeDistributed(self._dense_unbuilt(units), name=self.name("td"))
        layer.build((None, 3, 2))
        return layer

    def _lstm(self):
        layer = L.Bidirectional(L.LSTM(1, name=self.name("lstm")), name=self.name("bi"))
        layer.build((None, 2, 2))
        return layer

    def _root(self, kind, attributes, compiling):
        if kind == "subclass":
            model = Root(name="root")
        else:
            model = self._functional((2, 2), ()) if kind == "functional" else self._sequential((2, 2), ())
        self._attach(model, attributes)
        if compiling:
            model.compile(optimizer=compiling, loss="mse", metrics=["mae"])
            model.optimizer.build(model.trainable_variables)
        return model


def describe(rng, depth):
    """Invent something that an attribute may hold."""
    leaves = [("dense", rng.choice((1, 2, 3)), rng.random() < 0.7), ("norm", rng.choice((2, 3))), ("dropout",),
              ("scale",), ("einsum",), ("embedding",), ("metric",), ("loss",), ("optimizer",), ("unbuilt",),
              ("plain", rng.choice((3, "text", None, [1, 2], {"a": 1}, ("x", [])))), ("wrapper", 2)]  # fmt: skip
    if depth <= 0 or rng.random() < 0.35:
        weights = [6, 3, 1, 1, 1, 1, 1, 1, 1, 0.3, 1, 0.5]
        return rng.choices(leaves, weights)[0]
    kind = rng.choice(("node", "node", "list", "tuple", "dict", "sequential", "functional", "shared", "set"))
    if kind in ("list", "tuple"):
        return kind, [describe(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    if kind == "set":
        return kind, [("dense", 2, True)]
    if kind == "dict":
        return kind, [(name, describe(rng, depth - 1)) for name in rng.sample("abcd", rng.randint(0, 3))]
    if kind == "shared":
        return kind, rng.randint(0, 1), ("node", "Node", ((2, True),), (("alpha", ("dense", 2, True)),))
    if kind == "node":
        cls = rng.choice(("Node", "Node", "Other", "Shy", "WithClassAttribute"))
        own = tuple((rng.randint(1, 3), rng.random() < 0.5) for _ in range(rng.randint(0, 3)))
        return kind, cls, own, attributes(rng, depth - 1, 3)
    return kind, tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 2))), attributes(rng, depth - 1, 1)


def attributes(rng, depth, most):
    return tuple((name, describe(rng, depth)) for name in rng.sample(NAMES, rng.randint(0, most)))


def changed(rng, spec):
    """Change something, somewhere: sizes, names, presence."""
    kind, *rest = spec
    if kind == "dense" and rng.random() < 0.25:
        return "dense", rest[0] + rng.choice((0, 1)), rng.random() < 0.5
    if kind == "norm" and rng.random() < 0.25:
        return "norm", rest[0] + 1
    if kind in ("list", "tuple"):
        items = [changed(rng, item) for item in rest[0] if rng.random() < 0.9]
        rng.random() < 0.1 and rng.shuffle(items)
        return kind, items
    if kind == "dict":
        return kind, [(name, changed(rng, item)) for name, item in rest[0] if rng.random() < 0.9]
    if kind in ("node", "root", "sequential", "functional"):
        *head, held = rest[:2] if kind == "root" else rest
        tail = rest[2:] if kind == "root" else ()
        altered = []
        for name, item in held:
            luck = rng.random()
            if luck < 0.08:
                continue
            if luck < 0.2:
                name = rng.choice(NAMES)  # noqa: PLW2901
            altered.append((name, changed(rng, item)))
        if rng.random() < 0.1:
            altered.append((rng.choice(NAMES), ("dense", 2, True)))
        if kind == "node" and head[1] and rng.random() < 0.1:
            head[1] = head[1][1:]
        return (kind, *head, tuple(altered), *tail)
    return spec


def describe_root(rng):
    kind = rng.choice(("subclass", "subclass", "functional", "sequential"))
    compiling = rng.choice((None, None, "adam", "rmsprop"))
    return "root", kind, attributes(rng, 3, 5), compiling


def builder(spec):
    return lambda: Maker().make(spec)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(30))
def test_same_model(seed, tmp_path):
    rng = random.Random(seed)
    spec = describe_root(rng)
    pair = twins(builder(spec))
    check(pair, saved(pair, tmp_path / "x.weights.h5"))


@pytest.mark.slow
@needs_keras_3_15
@pytest.mark.parametrize("seed", seeds(100))
def test_changed_model(seed, tmp_path):
    rng = random.Random(1000 + seed)
    spec = describe_root(rng)
    path = saved(builder(spec), tmp_path / "x.weights.h5")
    other = changed(rng, spec)

    def skip(model):
        layers = sorted(model._flatten_layers(include_self=False), key=lambda layer: layer.name)
        return random.Random(seed).sample(layers, min(2, len(layers)))

    check(builder(other), path, skip_mismatch=seed % 3 == 0, skip=skip if seed % 5 == 0 else None)


@pytest.mark.parametrize("seed", seeds(20))
def test_what_the_walk_looks_at(seed):
    """Every object's children, in order, are those that Keras' walk would enter."""
    model = fresh(builder(describe_root(random.Random(2000 + seed))))
    targets = Keras3Targets(model)
    seen, waiting = set(), [model]
    while waiting:
        obj = waiting.pop()
        if id(obj) in seen:
            continue
        seen.add(id(obj))
        wanted = [(n, type(v)) for n, v in saving_lib._walk_saveable(obj) if matters(targets, v)]
        found = [(n, type(v)) for n, v in targets.children(obj) if matters(targets, v)]
        assert found == wanted
        for _, child in targets.children(obj):
            waiting += [c for c in flat(targets, child) if targets.node_kind(c) == "saveable"]


def matters(targets, value):
    """Whether a value is, or holds, an object that has something to load."""
    return any(targets.node_kind(item) == "saveable" for item in flat(targets, value))


def flat(targets, value, seen=()):
    if targets.node_kind(value) != "container" or id(value) in seen:
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [found for item in items for found in flat(targets, item, (*seen, id(value)))]


def test_class_knowledge_does_not_leak_between_objects(tmp_path):
    """Two objects of a class, of which one has more attributes than the other."""
    spec = ("root", "subclass", (("alpha", ("node", "Node", (), (("zeta", ("dense", 2, True)),))),
                                 ("blocks", ("node", "Node", (), (("head", ("dense", 3, True)),)))), None)  # fmt: skip
    done = check(builder(spec), saved(builder(spec), tmp_path / "x.weights.h5"))
    assert done.report.assigned == 4


def test_objects_that_list_their_own_attributes(tmp_path):
    """A class with a `__dir__` of its own is walked by Keras itself."""

    class Listed(Node):
        def __dir__(self):
            return [name for name in super().__dir__() if name != "hidden"]

    def build():
        model = Root(name="root")
        model.part = Listed(((2, True),), name="part")
        model.part.shown, model.part.hidden = Maker().make(("dense", 2, True)), Maker().make(("dense", 3, True))
        return model

    check(build, saved(build, tmp_path / "x.weights.h5"))


def test_attributes_made_on_access(tmp_path):
    class Lazy(Node):
        @property
        def made(self):
            return [self.inner, *([self.inner] if self.inner.built else ())]

        def __getattr__(self, name):
            if name == "phantom":
                return 1
            raise AttributeError(name)

    def build():
        model = Root(name="root")
        model.part = Lazy(name="part")
        model.part.inner = Maker().make(("dense", 2, True))
        return model

    check(build, saved(build, tmp_path / "x.weights.h5"))


def test_containers_that_contain_themselves(tmp_path):
    def build():
        model = Root(name="root")
        dense = Maker().make(("dense", 2, True))
        ring = [dense]
        ring.append(ring)
        object.__setattr__(model, "ring", ring)
        model.part = dense
        return model

    assert check(build, saved(build, tmp_path / "x.weights.h5")).report.assigned == 2


def test_values_that_raise_when_looked_at(tmp_path):
    class Odd:
        def __eq__(self, other):
            raise RuntimeError("no comparisons")

        def __bool__(self):
            raise RuntimeError("no truth")

        __hash__ = object.__hash__

    def build():
        model = Root(name="root")
        model.odd, model.array = Odd(), np.zeros(3)
        model.part = Maker().make(("dense", 2, True))
        return model

    check(build, saved(build, tmp_path / "x.weights.h5"))
