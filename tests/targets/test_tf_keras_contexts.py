"""Where a tf_keras model may be when it is loaded: a distribution strategy, a traced function, graph mode.

Rows are numbered as in docs/internals/keras.md, section 9.
"""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from support.differential import check, fill, fresh, our_load, perturb, saved, stock_load, twins, value_of
from support.models import functional

pytestmark = pytest.mark.usefixtures("both_ways")


def build():
    return functional(tf_keras)


def two_devices():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_mirrored_variables(suffix, inside, tmp_path):  # row 70: moving statistics are synchronised on reading
    strategy = two_devices()
    path = saved(build, tmp_path / f"x{suffix}")
    wanted = [w.numpy().tobytes() for w in fill(fresh(build)).weights]
    with strategy.scope():  # where names can't be counted anew
        model = build()
    for load in (stock_load, our_load):
        for weight in model.weights:
            weight.assign(tf.zeros_like(weight))
        if inside:
            with strategy.scope():
                assert load(model, path).error is None
        else:
            assert load(model, path).error is None
        for replica in range(2):
            assert [w.values[replica].numpy().tobytes() for w in model.weights] == wanted


def test_sums_over_replicas(tmp_path):  # row 70: each replica gets its share
    strategy = two_devices()

    class Counting(tf_keras.layers.Layer):
        def build(self, shape):
            self.total = self.add_weight(
                name="total",
                shape=(2,),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )

        def call(self, x):
            return x

    def counting():
        return tf_keras.Sequential([tf_keras.Input((2,)), Counting(name="count")], name="m")

    def replicas(load, suffix):
        path = saved(counting, tmp_path / f"x{suffix}")
        with strategy.scope():
            model = counting()
        done = load(model, path)
        return done.error, [replica.numpy().tobytes() for replica in model.weights[0].values]

    share = (fill(fresh(counting)).weights[0].numpy() / 2).tobytes()
    assert replicas(stock_load, ".h5") == (None, [share, share])
    assert replicas(our_load, ".h5") == (None, [share, share])
    # From a Keras 3 file stock divides the dataset itself, and fails.
    assert isinstance(replicas(stock_load, ".weights.h5")[0], TypeError), "stock has learned to load this"
    assert replicas(our_load, ".weights.h5") == (None, [share, share])


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_inside_a_traced_function(suffix, tmp_path):
    path = saved(build, tmp_path / f"x{suffix}")
    found = []
    for load, model in zip((stock_load, our_load), twins(build), strict=True):
        perturb(model, 0.5)

        @tf.function(autograph=False)  # which would rewrite all of fastassign: seconds
        def step(load=load, model=model):
            assert load(model, path).error is None
            return tf.constant(1)

        step()
        found.append([value_of(v).tobytes() for v in model.weights])
    assert found[0] == found[1]


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5"])
def test_graph_mode(suffix, tmp_path):  # rows 68, 69; more in test_graph.py
    path = saved(build, tmp_path / f"x{suffix}")
    wanted = [w.numpy().tobytes() for w in fill(fresh(build)).weights]
    with tf.Graph().as_default():
        model = build()
        loads = (stock_load, our_load) if suffix == ".h5" else (our_load,)  # of the other stock loads nothing
        for load in loads:
            tf_keras.backend.batch_set_value([(w, np.full(w.shape, 0.5)) for w in model.weights])
            assert load(model, path).error is None
            assert [value.tobytes() for value in tf_keras.backend.batch_get_value(model.weights)] == wanted


def test_preprocessing(tmp_path):  # row 73
    def made():
        inputs = tf_keras.Input((2,))
        x = tf_keras.layers.Normalization(name="scale")(inputs)
        return tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="d")(x), name="m")

    for suffix in (".h5", ".weights.h5", ".keras"):
        done = check(made, saved(made, tmp_path / f"x{suffix}"))
        layer = done.our_model.get_layer("scale")
        assert np.array_equal(np.ravel(layer.mean), np.ravel(layer.adapt_mean.numpy()))


# Lookup tables stand among the weights, and have neither a name nor assign.
def test_tf_idf(tmp_path):  # row 73
    def made():
        layer = tf_keras.layers.TextVectorization(output_mode="tf_idf", name="text")
        layer.adapt(tf.constant(["one two three", "two three", "three"]))
        return tf_keras.Sequential([tf_keras.Input((1,), dtype="string"), layer], name="m")

    with tf.device("CPU:0"):
        made().save_weights(str(tmp_path / "x.weights.h5"))
        stock, ours = made(), made()
    results = []
    for load, model in ((stock_load, stock), (our_load, ours)):
        lookup = model.layers[-1]._lookup_layer
        lookup.idf_weights.assign(lookup.idf_weights * 0 + 3)
        assert load(model, tmp_path / "x.weights.h5").error is None
        results.append(np.asarray(model(tf.constant([["two three"], ["one"]]))))
    assert np.array_equal(*results)


class Own(tf_keras.layers.Layer):
    """Saves and loads itself."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(4,))
        self.count = self.add_weight(name="count", shape=(), dtype="int32", trainable=False)

    def call(self, x):
        return x

    def save_own_variables(self, store):
        store["k"] = self.kernel.numpy()

    def load_own_variables(self, store):
        self.kernel.assign(store["k"])
        self.count.assign(len(store.keys()))


class Raising(Own):
    def load_own_variables(self, store):
        self.kernel.assign(store["k"])
        raise RuntimeError("not this one")


@pytest.mark.parametrize(("cls", "skip"), [(Own, False), (Own, True), (Raising, True)])
def test_own_methods(cls, skip, tmp_path):
    def made():
        layers = [tf_keras.layers.Dense(4, name="before"), cls(name="own"), tf_keras.layers.Dense(2, name="after")]
        return tf_keras.Sequential([tf_keras.Input((4,)), *layers], name="m")

    check(made, saved(made, tmp_path / "x.weights.h5"), skip_mismatch=skip)


def test_own_method_that_raises(tmp_path):
    """tf_keras passes on the exception of the method; here it is a Mismatch, and nothing has changed."""

    def made():
        return tf_keras.Sequential([tf_keras.Input((4,)), Raising(name="own")], name="m")

    path = saved(made, tmp_path / "x.weights.h5")
    model = perturb(fresh(made), 1)
    theirs = stock_load(model, path)
    perturb(model, 1)
    ours = our_load(model, path)
    assert isinstance(ours.error, ValueError) and str(ours.error) == str(theirs.error) == "not this one"
    assert np.all(model.weights[0].numpy() == 1)
