"""``fastassign.assign``: variables that the caller pairs with values, eagerly; graphs have a file of their own."""

import gc
import re
import threading
import warnings
import weakref
from functools import partial

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.distribute.sharded_variable import ShardedVariable

import fastassign as fa
from fastassign.assigning import execute
from fastassign.errors import Unsupported
from fastassign.streaming.buffers import aligned_array

SHAPE = (3, 4)


def values(shape=SHAPE, dtype="float32", seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape) * 9).astype(dtype)


def read(variable):
    """What a variable stores, autocasting aside."""
    variable = variable._value if isinstance(variable, keras.Variable) else variable
    return np.asarray(getattr(variable, "_variable", variable).numpy())


def holds(variable, wanted):
    found = read(variable)
    return (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def variable(shape=SHAPE, dtype="float32", name=None):
    return tf.Variable(np.zeros(shape), dtype=dtype, name=name)


def two_devices():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def kernel(library, policy="float32"):
    layer = library.layers.Dense(4, dtype=policy)
    layer.build((None, 3))
    return layer.kernel


def mirrored(make):
    with two_devices().scope():
        return make()


def summed():
    return tf.Variable(
        np.zeros(SHAPE, np.float32),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def sharded():
    return ShardedVariable([variable((2, 4)), variable((1, 4))], name="sharded")


ORDINARY = {
    "tf": variable,
    "keras": lambda: keras.Variable(np.zeros(SHAPE), dtype="float32"),
    "keras_layer": lambda: kernel(keras),
    "keras_mixed": lambda: kernel(keras, "mixed_float16"),
    "tf_keras_layer": lambda: kernel(tf_keras),
    "tf_keras_mixed": lambda: kernel(tf_keras, tf_keras.mixed_precision.Policy("mixed_float16")),
}

# Of several components.
COMPOSITE = {
    "mirrored": lambda: mirrored(variable),
    "mirrored_keras": lambda: mirrored(ORDINARY["keras"]),
    "mirrored_tf_keras": lambda: mirrored(ORDINARY["tf_keras_layer"]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files with a bit of everything."""
    paths = []
    for seed in range(2):
        path = tmp_path_factory.mktemp("entries") / f"{seed}.h5"
        with h5py.File(path, "w") as file:
            file["a/kernel"] = values(seed=seed)
            file["a/double"] = values(dtype="float64", seed=seed)
            file.create_dataset("a/gzip", data=values((50, 40), seed=seed), chunks=(10, 40), compression="gzip")
            file["a/scalar"] = np.float32(seed + 1)
            file["a/empty"] = values((0, 4))
            file["a/opaque"] = values(dtype=ml_dtypes.bfloat16, seed=seed).view("V2")
            file["a/big_endian"] = values(seed=seed).astype(">f4")
            file["a/large"] = values((300, 200), seed=seed)
        paths.append(path)
    return paths


# Variables.


@pytest.mark.parametrize("kind", ORDINARY)
def test_variables_of_every_kind(kind):
    made, wanted = ORDINARY[kind](), values()
    report = fa.assign([(made, wanted)])
    assert holds(made, wanted)
    assert report.assigned == 1 and report.routes == {"arena": 1}


@pytest.mark.parametrize("kind", COMPOSITE)
def test_variables_of_several_components(kind):
    made, wanted = COMPOSITE[kind](), values()
    report = fa.assign([(made, wanted)])
    assert report.routes == {"assign": 1}
    parts = (made._value if isinstance(made, keras.Variable) else made).values
    assert len(parts) == 2 and all(holds(part, wanted) for part in parts)


def test_variables_that_are_summed():
    one, other, wanted = mirrored(summed), mirrored(summed), values()
    one.assign(wanted)
    fa.assign([(other, wanted)])
    assert all(holds(b, read(a)) and holds(a, wanted / 2) for a, b in zip(one.values, other.values, strict=True))


def test_sharded_variables():
    made, wanted = sharded(), values()
    fa.assign([(made, wanted)])
    assert holds(made.variables[0], wanted[:2]) and holds(made.variables[1], wanted[2:])


def test_optimizer_variables():
    optimizer = keras.optimizers.Adam(0.5)
    optimizer.build([ORDINARY["keras"]()])
    fa.assign([(optimizer.iterations, 7), (optimizer._learning_rate, 0.25)])
    assert read(optimizer.iterations) == 7 and read(optimizer._learning_rate) == 0.25
    # A constant of the process stands behind such values: others that were made of it are as they were.
    assert read(keras.optimizers.Adam(0.5)._learning_rate) == 0.5
    assert tf.constant(0.5).numpy() == 0.5


@pytest.mark.parametrize("rows", [4, 3000])
def test_embeddings_that_were_looked_up(rows):
    """A lookup marks its variable: what is assigned then is copied, or the mark is taken away."""
    made = tf.Variable(np.zeros((rows, 100), np.float32))
    for seed in range(2):
        assert tf.gather(made, [1, 2]).shape == (2, 100)
        wanted = values((rows, 100), seed=seed)
        fa.assign([(made, wanted)])
        assert holds(made, wanted)
        assert tf.gather(made, [3]).numpy().tobytes() == wanted[3].tobytes()


def test_open_shapes():
    made = tf.Variable(np.zeros((2, 3), np.float32), shape=(None, 3))
    for rows in (4, 1, 0):
        wanted = values((rows, 3))
        fa.assign([(made, wanted)])
        assert holds(made, wanted)
    free = tf.Variable(1.0, shape=tf.TensorShape(None))
    fa.assign([(free, values())])
    assert holds(free, values())


def test_variables_on_another_device():
    with tf.device("CPU:1"):
        made = variable()
    fa.assign([(made, values())])
    with tf.device("CPU:1"):
        doubled = made * 2
    assert made.device.endswith("CPU:1") and doubled.numpy().tobytes() == (values() * 2).tobytes()


def test_variables_are_let_go_of():
    """Without the collector: they are large."""
    gc.collect()
    gc.disable()
    try:
        made = variable()
        fa.assign([(made, values())])
        alive = weakref.ref(made)
        del made
        assert alive() is None
    finally:
        gc.enable()


# Values.


VALUES = {
    "array": values(),
    "transposed": values((4, 3)).T,
    "fortran": np.asfortranarray(values()),
    "strided": values((6, 8))[::2, ::-2],
    "broadcast": np.broadcast_to(values((4,)), SHAPE),
    "big_endian": values().astype(">f4"),
    "big_endian_double": values().astype(">f8"),
    "unaligned": np.frombuffer(b"x" + values().tobytes(), np.float32, offset=1).reshape(SHAPE),
    "read_only": np.frombuffer(values().tobytes(), np.float32).reshape(SHAPE),
    "masked": np.ma.masked_array(values(), values() > 0),
    "memoryview": memoryview(values()),
    "list": values().tolist(),
    "tuple": tuple(map(tuple, values().tolist())),
    "rows": list(values()),
    "ints": np.arange(12).reshape(SHAPE).tolist(),
    "bools": (values() > 0).tolist(),
    "tensor": tf.constant(values()),
    "tensor_double": tf.constant(values(dtype="float64")),
    "variable": tf.Variable(values()),
    "half": values(dtype="float16"),
    "bfloat16": tf.constant(values(), tf.bfloat16),
}


@pytest.mark.parametrize("kind", VALUES)
def test_values_of_every_kind(kind):
    one, other = variable(), variable()
    tf_keras.backend.batch_set_value([(one, VALUES[kind])])
    fa.assign([(other, VALUES[kind])])
    assert holds(other, read(one))
    assert read(one).any()


def test_keras_variable_as_a_value():
    made, source = variable(), keras.Variable(values(), dtype="float32")
    fa.assign([(made, source)])
    assert holds(made, values())


@pytest.mark.parametrize("value", [1, 1.5, True, np.float64(2.5), np.int8(3), np.array(4), [5][0], tf.constant(6)])
def test_scalars(value):
    made = variable(())
    fa.assign([(made, value)])
    assert holds(made, np.asarray(value, np.float32))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1, 1, 1), (7,), (2, 3, 4, 5), (33_000,), (300, 200)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool"])
def test_shapes(shape, dtype):
    made = variable(shape, dtype)
    report = fa.assign([(made, values(shape, dtype))])
    assert holds(made, values(shape, dtype))
    assert report.nbytes == values(shape, dtype).nbytes


FLOATS = ("bfloat16", "float16", "float32", "float64")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
COMPLEX = ("complex64", "complex128")
DTYPES = (*FLOATS, *INTEGERS, "bool", *COMPLEX)


def sample(dtype):
    """Values at the edges of a dtype, and between."""
    kind = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
    if dtype == "bool":
        return np.array([True, False, True])
    if dtype in INTEGERS:
        info = np.iinfo(kind)
        return np.array([info.min, info.max, 0, 1, 77, 127, info.max // 2 + 1], kind)
    plain = np.array([0.0, -0.0, 1.0, -1.5, 2.5, 77.7, 1 / 3, 126.9, 1.00390625, 1.01171875, 300.5])
    if dtype in COMPLEX:
        return (plain + 1j * plain[::-1]).astype(kind)
    return plain.astype(kind)


@pytest.mark.filterwarnings("ignore")  # of what numpy says of each pair
@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_casts_like_stock(source, to):
    array = sample(source)
    one, other = variable(array.shape, to), variable(array.shape, to)
    tf_keras.backend.batch_set_value([(one, array)])
    report = fa.assign([(other, array)])
    assert holds(other, read(one))
    assert len(report.cast) == (source != to)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", [*FLOATS, *COMPLEX])
@pytest.mark.parametrize("source", [*FLOATS, *COMPLEX])
def test_casts_of_what_is_no_number_like_stock(source, to):
    kind = tf.as_dtype(source).as_numpy_dtype
    array = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 65520, 3.4e38, 1e-40, 5e-324]).astype(kind)
    one, other = variable(array.shape, to), variable(array.shape, to)
    tf_keras.backend.batch_set_value([(one, array)])
    fa.assign([(other, array)])
    assert holds(other, read(one))


@pytest.mark.parametrize("to", ["float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_casts_into_small_dtypes(to):
    kind = tf.as_dtype(to).as_numpy_dtype
    made = tf.Variable(np.zeros(5, kind))
    for array in (np.arange(5, dtype=np.float32), np.arange(5).astype(kind)):
        fa.assign([(made, array)])
        assert holds(made, array.astype(kind))


def test_dtype_inside_of_an_autocasting_scope():
    """Where stock rounds the master weight to half precision."""
    made = ORDINARY["tf_keras_mixed"]()
    from tf_keras.src.mixed_precision import autocast_variable

    with autocast_variable.enable_auto_cast_variables(tf.float16):
        fa.assign([(made, values() / 3)])
    assert holds(made, values() / 3)


def test_discarded_imaginary_parts_are_warned_of():
    one, other = variable(), variable()
    for assign, made in ((tf_keras.backend.batch_set_value, one), (fa.assign, other)):
        with pytest.warns(np.exceptions.ComplexWarning, match="imaginary part"):
            assign([(made, values() + 1j)])
    assert holds(other, read(one))


@pytest.mark.parametrize("threads", [1, 4])
def test_warning_that_is_an_error(threads):
    """It comes while values are made, so the variables of this batch are as they were."""
    first, second = variable(), variable()
    with warnings.catch_warnings():
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        with pytest.raises(np.exceptions.ComplexWarning) as caught:
            fa.assign([(first, values()), (second, values() + 1j)], options=fa.LoadOptions(threads=threads))
    assert caught.value.assigned == ()
    assert not read(first).any() and not read(second).any()


@pytest.mark.parametrize("size", [5, 1000, 300_000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_may_change_after_the_call(dtype, size):
    made = variable((size,))
    # Aligned as TensorFlow wants it: it would keep the array itself.
    array = aligned_array(8 * size).view(dtype)[:size]
    array[:] = 1
    fa.assign([(made, array)])
    array[:] = 2
    assert (read(made) == 1).all()


@pytest.mark.parametrize("size", [5, 300_000])
def test_two_variables_of_one_array(size):
    one, two, array = variable((size,)), variable((size,)), np.ones(size, np.float32)
    fa.assign([(one, array), (two, array)])
    for _ in range(2):
        one.assign_add(array)
    assert (read(one) == 3).all() and (read(two) == 1).all() and (array == 1).all()


@pytest.mark.parametrize("size", [5, 300_000])
def test_a_value_that_was_read_does_not_change(size):
    made = variable((size,))
    fa.assign([(made, np.full(size, 1))])
    kept, tensor = made.numpy(), made.value()
    for i in range(2, 6):
        fa.assign([(made, np.full(size, i))])
    assert (kept == 1).all() and (tensor.numpy() == 1).all() and (read(made) == 5).all()


@pytest.mark.parametrize("size", [5, 3_000_000])
def test_two_variables_change_places(size):
    one, two = tf.Variable(np.ones(size, np.float32)), tf.Variable(np.zeros(size, np.float32))
    fa.assign([(one, two.value()), (two, one.value())])
    assert (read(one) == 0).all() and (read(two) == 1).all()
    fa.assign([(one, two), (two, one)])
    assert (read(one) == 1).all() and (read(two) == 0).all()


# Pairs.


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


# Tensors of files.


@pytest.mark.parametrize("name", ["kernel", "double", "opaque", "big_endian"])
def test_tensor_of_a_file(name, files):
    made = variable(dtype="bfloat16" if name == "opaque" else "float32")
    report = fa.assign([(made, fa.inspect(files[0])[f"a/{name}"])])
    wanted = values(dtype="float64").astype(np.float32) if name == "double" else values()
    assert holds(made, values(dtype=ml_dtypes.bfloat16) if name == "opaque" else wanted)
    assert report.file == str(files[0])
    assert len(report.cast) == (name in {"double", "big_endian"})  # the second is another dtype to HDF5


@pytest.mark.parametrize("shape", [("gzip", (50, 40)), ("scalar", ()), ("empty", (0, 4)), ("large", (300, 200))])
def test_tensors_of_other_shapes(shape, files):
    name, dims = shape
    made = variable(dims)
    fa.assign([(made, fa.inspect(files[1])[f"a/{name}"])])
    assert holds(made, np.asarray(np.float32(2)) if name == "scalar" else values(dims, seed=1))


@pytest.mark.parametrize("kind", [*ORDINARY, *COMPOSITE])
def test_tensor_for_variables_of_every_kind(kind, files):
    made = {**ORDINARY, **COMPOSITE}[kind]()
    fa.assign([(made, fa.inspect(files[0])["a/kernel"])])
    assert holds(made, values())


def test_tensor_for_a_Keras_variable_is_cast_by_numpy(files):
    made = keras.Variable(np.zeros(SHAPE), dtype="float16")
    fa.assign([(made, fa.inspect(files[0])["a/double"])])
    assert holds(made, values(dtype="float64").astype(np.float16))


def test_arrays_and_tensors_of_two_files(files):
    made = [variable(name=name) for name in "abcd"]
    one, two = map(fa.inspect, files)
    report = fa.assign(
        [(made[0], one["a/kernel"]), (made[1], values(seed=7)), (made[2], two["a/kernel"]), (made[3], one["a/double"])]
    )
    for each, wanted in zip(made, (values(), values(seed=7), values(seed=1), read(made[3])), strict=True):
        assert holds(each, wanted)
    assert holds(made[3], values(dtype="float64").astype(np.float32))
    assert report.assigned == 4 and sum(report.routes.values()) == 4
    assert report.nbytes == 5 * values().nbytes
    assert report.file == f"{files[0]}, {files[1]}, memory"
    assert report.cast == ("d:0: <f8 to float32",)


def test_later_values_win_among_files_and_arrays(files):
    entries = [fa.inspect(path)["a/kernel"] for path in files]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        made = variable()
        candidates = [*entries, values(seed=7)]
        fa.assign([(made, candidates[which]) for which in order])
        assert holds(made, (values(), values(seed=1), values(seed=7))[order[-1]])


def test_one_tensor_for_two_variables(files):
    made = [variable(), kernel(tf_keras)]
    catalog = fa.inspect(files[0])
    fa.assign([(each, catalog["a/kernel"]) for each in made])
    assert all(holds(each, values()) for each in made)


def test_tensor_of_an_archive(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="d")])
    model.save(tmp_path / "m.keras")
    made = variable()
    fa.assign([(made, fa.inspect(tmp_path / "m.keras")["dense/vars/0"])])
    assert holds(made, read(model.layers[0].kernel))


def test_file_that_changed_before(tmp_path, files):
    path = tmp_path / "x.h5"
    path.write_bytes(files[0].read_bytes())
    entry = fa.inspect(path)["a/kernel"]
    path.write_bytes(files[1].read_bytes())
    made = variable()
    with pytest.raises(fa.Changed) as caught:
        fa.assign([(made, entry)])
    assert not read(made).any()
    assert getattr(caught.value, "assigned", ()) == ()


def test_second_file_that_changed_before(tmp_path, files):
    """Nothing has changed by then; or the error says what."""
    path = tmp_path / "x.h5"
    path.write_bytes(files[1].read_bytes())
    first, second = variable(name="first"), variable(name="second")
    pairs = [(first, fa.inspect(files[0])["a/kernel"]), (second, fa.inspect(path)["a/kernel"])]
    path.write_bytes(files[0].read_bytes())
    with pytest.raises(fa.Changed) as caught:
        fa.assign(pairs)
    assert not read(second).any()
    assert getattr(caught.value, "assigned", ()) == (("first:0",) if read(first).any() else ())


# What does not fit; nothing changes.

WRONG = {**ORDINARY, **COMPOSITE}
WRONG_SHAPES = ((4, 3), (3,), (), (3, 4, 1), (0, 4))


def text_of(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_shapes_have_the_text_of_stock(kind):
    """That of the variable's own ``assign``; Keras 3 shows the value too, which is the same for both."""
    made, good = WRONG[kind](), variable()
    for shape in WRONG_SHAPES:
        wanted = text_of(lambda shape=shape: made.assign(np.zeros(shape, np.float32)))
        with pytest.raises(fa.Mismatch) as caught:
            fa.assign([(good, values()), (made, np.zeros(shape, np.float32))])
        assert str(caught.value) == wanted
        assert caught.value.tensor == "array 1" and caught.value.variable
        assert not read(good).any()


def test_wrong_shape_of_a_tensor_in_a_file(files):
    made, good = variable(), variable()
    catalog = fa.inspect(files[0])
    with pytest.raises(fa.Mismatch, match=re.escape("(50, 40)")) as caught:
        fa.assign([(good, catalog["a/kernel"]), (made, catalog["a/gzip"])])
    assert caught.value.tensor == "a/gzip"
    assert not read(good).any()


def test_wrong_open_shape_has_the_text_of_stock():
    made = tf.Variable(np.zeros((2, 3), np.float32), shape=(None, 3))
    for shape in ((3, 4), (3,)):
        wanted = text_of(lambda shape=shape: made.assign(np.zeros(shape, np.float32)))
        assert text_of(lambda shape=shape: fa.assign([(made, np.zeros(shape))])) == wanted
    assert read(made).shape == (2, 3)


NO_NUMBERS = {
    "texts": np.full(SHAPE, "x"),
    "numbers_as_texts": np.full(SHAPE, "1"),
    "bytes": np.full(SHAPE, b"x"),
    "objects": np.full(SHAPE, None),
    "dates": np.zeros(SHAPE, "M8[s]"),
    "times": np.zeros(SHAPE, "m8[s]"),
    "records": np.zeros(SHAPE, [("a", "f4"), ("b", "f4")]),
    "records_of_one": np.zeros(SHAPE, [("a", "f4")]),
    "void": np.zeros(SHAPE, "V4"),
    "text_tensor": tf.fill(SHAPE, "x"),
    "list_of_texts": [["x"] * 4] * 3,
    "nones": [[None] * 4] * 3,
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_number(kind):
    made, good = variable(), variable()
    with pytest.raises(fa.Mismatch, match="can't become a value of") as caught:
        fa.assign([(good, values()), (made, NO_NUMBERS[kind])])
    assert caught.value.tensor == "array 1"
    assert not read(good).any() and not read(made).any()


@pytest.mark.parametrize("value", [None, "x", {}, {1, 2}, object(), b"xy", lambda: 0])
def test_what_is_no_array(value):
    made, good = variable(()), variable()
    with pytest.raises(fa.Mismatch):
        fa.assign([(good, values()), (made, value)])
    assert not read(good).any() and not read(made).any()


def test_ragged_lists():
    good = variable()
    with pytest.raises(ValueError, match="inhomogeneous"):
        fa.assign([(good, values()), (variable((2,)), [[1], [1, 2]])])
    assert not read(good).any()


@pytest.mark.parametrize("from_file", [False, True])
def test_variables_of_texts(from_file, files):
    made, good = tf.Variable(np.full(SHAPE, "x")), variable()
    catalog = fa.inspect(files[0])
    with pytest.raises(Unsupported, match="string"):
        fa.assign([(good, catalog["a/kernel"]), (made, catalog["a/kernel"] if from_file else np.full(SHAPE, "y"))])
    assert not read(good).any()
    assert (read(made) == b"x").all()


def test_opaque_bytes_without_meaning(files):
    made, good = variable(dtype="float32"), variable()
    catalog = fa.inspect(files[0])
    with pytest.raises(fa.Mismatch):
        fa.assign([(good, catalog["a/kernel"]), (made, catalog["a/opaque"])])
    assert not read(good).any()


@pytest.mark.parametrize(
    "thing",
    [5, None, "w", np.zeros(SHAPE), tf.zeros(SHAPE), keras.Input((3,)), tf_keras.Input((3,)), tf_keras.layers.Dense(3),
     keras.layers.Dense(3), object()],
    ids=lambda thing: type(thing).__name__,
)  # fmt: skip
def test_what_is_no_variable(thing):
    good = variable()
    with pytest.raises(TypeError, match="is not a variable"):
        fa.assign([(good, values()), (thing, values())])
    assert not read(good).any()


@pytest.mark.parametrize("make", [lambda v: [v], lambda v: [(v,)], lambda v: [(v, 1, 2)], lambda v: 5, lambda v: v])
def test_what_are_no_pairs(make):
    made = variable()
    with pytest.raises((TypeError, ValueError)):
        fa.assign(make(made))
    assert not read(made).any()


# Memory.


def test_budget_names_the_array():
    good, made = variable(), variable((1000,))
    with pytest.raises(fa.Budget, match="largest tensor") as caught:
        fa.assign([(good, values()), (made, np.ones(1000))], options=fa.LoadOptions(max_staging_bytes=1000))
    assert caught.value.tensor == "array 1"
    assert not read(good).any() and not read(made).any()
    least = int(re.search(r"max_staging_bytes=(\d+)", caught.value.hint)[1])
    assert 4000 <= least <= 4064
    with pytest.raises(fa.Budget):
        fa.assign([(made, np.ones(1000))], options=fa.LoadOptions(max_staging_bytes=least - 1))
    fa.assign([(good, values()), (made, np.ones(1000))], options=fa.LoadOptions(max_staging_bytes=least))
    assert holds(good, values()) and (read(made) == 1).all()


def test_budget_names_the_tensor_of_a_file(files):
    catalog, good, made = fa.inspect(files[0]), variable(), variable((300, 200))
    pairs = [(good, catalog["a/kernel"]), (made, catalog["a/large"])]
    with pytest.raises(fa.Budget) as caught:
        fa.assign(pairs, options=fa.LoadOptions(max_staging_bytes=100_000))
    assert caught.value.tensor == "a/large" and caught.value.file == str(files[0])
    assert not read(good).any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["float32", "float64", "mirrored"])
def test_staging_is_bounded(kind, threads, monkeypatch):
    limit, live, most = 20_000, [0], [0]

    class Watched(execute.EagerBatch):
        def __init__(self, batch):
            super().__init__(batch)
            live[0] += batch.staged_bytes
            most[0] = max(most[0], live[0])

        def assign(self, journal):
            super().assign(journal)
            live[0] -= self.batch.staged_bytes

    monkeypatch.setattr(execute, "EagerBatch", Watched)
    made = [COMPOSITE["mirrored"]() if kind == "mirrored" else variable((20, 20)) for _ in range(40)]
    dtype = "float32" if kind == "mirrored" else kind
    fa.assign(
        [(each, values(tuple(each.shape), dtype, seed)) for seed, each in enumerate(made)],
        options=fa.LoadOptions(threads=threads, max_staging_bytes=limit),
    )
    for seed, each in enumerate(made):
        assert holds(each, values(tuple(each.shape), dtype, seed).astype(np.float32))
    assert live == [0] and 0 < most[0] <= limit


# Where it is called.


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
            barrier.wait(10)
            for round_ in range(10):
                fa.assign([(each, np.full(SHAPE, 100 * i + round_)) for each in made[i]])
                assert all((read(each) == 100 * i + round_).all() for each in made[i])
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


# What is told.


def test_report():
    small, large, cast, empty = variable(name="s"), variable((300, 200)), variable(name="c"), variable((0, 4))
    spread = COMPOSITE["mirrored"]()
    pairs = [
        (small, values()),
        (large, values((300, 200))),
        (cast, values(dtype="float64")),
        (empty, values((0, 4))),
        (spread, values()),
    ]
    report = fa.assign(pairs)
    assert report.assigned == 5 and sum(report.routes.values()) == 5
    assert report.routes["owned"] == 1 and report.routes["assign"] == 1
    assert report.cast == ("c:0: float64 to float32",)
    assert report.nbytes == 3 * 48 + 240_000
    assert report.file == "memory" and not report.index_cached
    assert report.missing == report.unexpected == report.skipped == report.repaired == ()
    assert {"match", "plan", "execute", "total"} <= report.seconds.keys()
    assert report.seconds["total"] >= report.seconds["execute"] > 0
    assert "5 variables" in str(report)


@pytest.mark.parametrize("kind", ["array", "big_endian", "fortran", "strided", "tensor", "variable"])
def test_what_is_no_cast(kind):
    assert fa.assign([(variable(), VALUES[kind])]).cast == ()


@pytest.mark.parametrize(("value", "text"), [(7, "int64"), (0.5, "float64"), (True, "bool"), (np.int8(1), "int8")])
def test_what_is_a_cast(value, text):
    assert fa.assign([(variable((), name="v"), value)]).cast == (f"v:0: {text} to float32",)
