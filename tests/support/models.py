"""Small models for both libraries. ``k`` is the module: ``keras`` or ``tf_keras``."""

from functools import cache

import keras
import tensorflow as tf
import tf_keras

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}

# The trainable modes of a model that holds layers a, b, c, d (docs/internals/keras.md, section 3).
MODES = ("train", "frozen_top", "frozen_each", "first_frozen", "last2_trainable", "bn_frozen")


def functional(k):
    """A bit of everything that is common: dense, normalised, dropped out, two outputs."""
    inputs = k.Input((4,), name="in")
    x = k.layers.Dense(5, name="first")(inputs)
    x = k.layers.BatchNormalization(name="norm")(x)
    x = k.layers.Dropout(0.5, name="drop")(x)
    out = k.layers.Dense(3, name="second")(x)
    other = k.layers.Dense(2, use_bias=False, name="other")(x)
    return k.Model(inputs, [out, other], name="net")


def sequential(k):
    """The same as a stack."""
    layers = [
        k.Input((4,)),
        k.layers.Dense(5, name="first"),
        k.layers.BatchNormalization(name="norm"),
        k.layers.Dropout(0.5, name="drop"),
        k.layers.Dense(3, name="second"),
    ]
    return k.Sequential(layers, name="stack")


def chain(k, *units, names=None, use_bias=True, size=4):
    """A stack of dense layers; ``names`` as given, or automatic."""
    names = names or [None] * len(units)
    layers = [k.layers.Dense(n, use_bias=use_bias, name=name) for n, name in zip(units, names, strict=True)]
    return k.Sequential([k.Input((size,)), *layers], name="chain")


def compiled(k, model, optimizer="adam", *, slots=True):
    """Compile a model; with ``slots`` its optimizer has all its variables."""
    model.compile(optimizer=optimizer, loss="mean_squared_error")
    if slots:
        model.optimizer.build(model.trainable_variables)
    return model


@cache
def composite_class(k):
    """Return the class of a layer that holds four layers."""

    class Composite(k.layers.Layer):
        def __init__(self, parts, **kwargs):
            super().__init__(**kwargs)
            self.a, self.b, self.c, self.d = parts

        def build(self, shape):
            if k is keras:
                for part in (self.a, self.b, self.c, self.d):
                    part.build(shape)
                    shape = part.compute_output_shape(shape)
            super().build(shape)

        def call(self, x):
            return self.d(self.c(self.b(self.a(x))))

    return Composite


def nested(k, kind, *, sizes=(4, 4), named=True):
    """Input -> base of [Dense a, BN b, Dense c, BN d] -> Dense head; returns the model and all its layers."""
    names = dict.fromkeys("abcd") if not named else {name: name for name in "abcd"}
    parts = [
        k.layers.Dense(sizes[0], name=names["a"]),
        k.layers.BatchNormalization(name=names["b"]),
        k.layers.Dense(sizes[1], name=names["c"]),
        k.layers.BatchNormalization(name=names["d"]),
    ]
    if kind == "functional":
        inner = x = k.Input((4,))
        for part in parts:
            x = part(x)
        base = k.Model(inner, x, name="base")
    elif kind == "sequential":
        base = k.Sequential([k.Input((4,)), *parts], name="base")
    else:
        base = composite_class(k)(parts, name="base")
    head = k.layers.Dense(2, name="head")
    inputs = k.Input((4,))
    model = k.Model(inputs, head(base(inputs)), name="outer")
    return model, base, [*parts, head]


def set_mode(base, layers, mode):
    """Freeze what a mode freezes, after thawing everything."""
    base.trainable = True
    for layer in layers:
        layer.trainable = True
    a, b, c, d = layers[:4]
    frozen = {
        "train": (),
        "frozen_top": (base,),
        "frozen_each": (a, b, c, d),
        "first_frozen": (a,),
        "last2_trainable": (a, b),
        "bn_frozen": (b, d),
    }[mode]
    for layer in frozen:
        layer.trainable = False


@cache
def subclass_of(k):
    """Return a model class whose layers are attributes, given by name in an order of their own."""

    class Subclassed(k.Model):
        def __init__(self, layers, **kwargs):
            super().__init__(**kwargs)
            for name, layer in layers.items():
                setattr(self, name, layer)
            self.order = tuple(layers)

        def call(self, x):
            for name in sorted(self.order):
                x = getattr(self, name)(x)
            return x

    return Subclassed


def subclassed(k, *names, units=4, build=True, layer_names=True):
    """A subclassed model of dense layers under these attribute names, created in this order."""
    layers = {name: k.layers.Dense(units, name=f"layer_{name}" if layer_names else None) for name in names}
    model = subclass_of(k)(layers, name="sub")
    if build:
        model(k.ops.zeros((1, units)) if k is keras else tf_keras.backend.zeros((1, units)))
    return model


@cache
def with_own_weights_class(k):
    """Return a model class with weights that belong to the model itself."""

    class WithOwnWeights(k.Model):
        def __init__(self, shapes, **kwargs):
            super().__init__(**kwargs)
            self.dense = k.layers.Dense(3, name="dense")
            self.own = [
                self.add_weight(shape=shape, name=f"own{i}", trainable=i != 1) for i, shape in enumerate(shapes)
            ]

        def call(self, x):
            return self.dense(x)

    return WithOwnWeights


def with_own_weights(k, *shapes):
    """A model with a dense layer and top-level weights of these shapes."""
    model = with_own_weights_class(k)(shapes, name="own")
    model(k.ops.zeros((1, 4)) if k is keras else tf_keras.backend.zeros((1, 4)))
    return model


def _zeros(shape, dtype=None, **_):
    """Return zeros of a dtype that may be too small for TensorFlow's own."""
    return tf.cast(tf.zeros(shape), dtype)


def holder(k, *specs):
    """A model whose one layer owns variables of the given (shape, dtype)."""

    class Holder(k.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            for i, (shape, dtype) in enumerate(specs):
                self.add_weight(shape=shape, dtype=dtype, name=f"v{i}", initializer=_zeros, trainable=False)

        def call(self, x):
            return x

    inputs = k.Input((1,))
    return k.Model(inputs, Holder(name="holder")(inputs), name="m")


def zoo(k):
    """One model for each family of layers, by name, as functions without arguments."""
    L = k.layers

    def of(shape, *layers, dtype=None):
        inputs = x = k.Input(shape, dtype=dtype)
        for layer in layers:
            x = layer(x)
        return k.Model(inputs, x, name="zoo")

    def attention():
        inputs = k.Input((3, 4))
        return k.Model(inputs, L.MultiHeadAttention(2, 3, name="mha")(inputs, inputs), name="zoo")

    return {
        "attention": attention,
        "group_norm": lambda: of((3, 4), L.GroupNormalization(2, name="gn"), L.LayerNormalization(name="ln")),
        "separable": lambda: of((5, 5, 2), L.SeparableConv2D(3, 2, name="sep"), L.PReLU(name="prelu")),
        "convolutions": lambda: of(
            (4, 4, 2),
            L.Conv2D(3, 2, padding="same", name="conv"),
            L.DepthwiseConv2D(2, name="depth"),
            L.Conv2DTranspose(2, 2, name="up"),
        ),
        "conv1d": lambda: of((6, 2), L.Conv1D(3, 2, name="c1"), L.Conv1DTranspose(2, 2, name="t1")),
        "conv3d": lambda: of((3, 3, 3, 1), L.Conv3D(2, 2, name="c3")),
        "embedding": lambda: of((3,), L.Embedding(5, 4, name="emb"), L.Dense(2, name="d"), dtype="int32"),
        "recurrent": lambda: of((3, 4), L.LSTM(3, return_sequences=True, name="lstm"), L.GRU(2, name="gru")),
        "bidirectional": lambda: of((3, 4), L.Bidirectional(L.LSTM(2, name="inner"), name="bi")),
        "time_distributed": lambda: of((3, 4), L.TimeDistributed(L.Dense(2, name="inner"), name="td")),
        "conv_lstm": lambda: of((2, 4, 4, 1), L.ConvLSTM2D(2, 2, name="cl")),
        "stacked_cells": lambda: of(
            (3, 4),
            L.RNN(L.StackedRNNCells([L.LSTMCell(2, name="c0"), L.GRUCell(3, name="c1")], name="cells"), name="rnn"),
        ),
        "simple_rnn": lambda: of((3, 4), L.SimpleRNN(2, name="rnn")),
    }


def backbone(k, units=(4, 4), name="backbone"):
    """Dense, BatchNormalization, Dense, all with automatic names but the last."""
    layers = [k.layers.Dense(units[0], name="low"), k.layers.BatchNormalization(name="norm")]
    return k.Sequential([k.Input((4,)), *layers, k.layers.Dense(units[1], name="high")], name=name)


def larger(k, base, units=2):
    """A model around another, with a head of its own."""
    inputs = k.Input((4,))
    return k.Model(inputs, k.layers.Dense(units, name="head")(base(inputs)), name="larger")
