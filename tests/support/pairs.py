"""Variables of every kind, values for them, and how a test looks at them."""

import keras
import numpy as np
import tensorflow as tf
import tf_keras

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
