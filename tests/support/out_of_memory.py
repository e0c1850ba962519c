"""A load that a device has no room for, in a process of its own, whose device has little: prints a line of JSON."""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import pytest
import tensorflow as tf

import fastassign
from fastassign.benchmarks.device.models import save_random, stack_of
from fastassign.errors import DeviceMemory
from support.options import load_options
from support.simulated import DEVICES, simulated

KIND, FOLDER = sys.argv[1], Path(sys.argv[2])
LIMIT_MB = 64
# A little more than half of it: there is no room for a second set of values.
TENSORS, SIDE = 9, 1024

if KIND == "real":
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("GPU")[0], [tf.config.LogicalDeviceConfiguration(memory_limit=LIMIT_MB)]
    )
else:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
    )


class Room:
    """The memory that a simulated device has left."""

    def __init__(self):
        self.left = None
        self._empty = tf.raw_ops.Empty

    def empty(self, shape, dtype, init):
        if self.left is not None:
            self.left -= int(np.prod(shape.numpy())) * dtype.size
            if self.left < 0:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor, simulated")
        return self._empty(shape=shape, dtype=dtype, init=init)


def main():
    room = Room()
    with ExitStack() as stack:
        name = tf.config.list_logical_devices("GPU")[0].name if KIND == "real" else DEVICES[0]
        if KIND == "simulated":
            monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
            stack.enter_context(simulated(monkeypatch))
            monkeypatch.setattr(tf.raw_ops, "Empty", room.empty)
        with tf.device(name):
            model = stack_of([(f"kernel{i}", SIDE, SIDE) for i in range(TENSORS)])
        path = FOLDER / "model.weights.h5"
        save_random(model, path)
        expected = [weight.numpy() for weight in model.weights]
        for weight in model.weights:
            weight.assign(tf.ones_like(weight._value))
        options = load_options(device_window_bytes=8 << 20)
        found = {"error": "none"}
        room.left = 20 << 20
        try:
            fastassign.load_weights(model, path, atomic=True, options=options)
        except DeviceMemory as error:
            found = {"error": type(error).__name__, "message": str(error), "hint": error.hint}
        found["unchanged"] = all(bool((weight.numpy() == 1).all()) for weight in model.weights)
        # The same in parts goes.
        room.left = None
        fastassign.load_weights(model, path, options=options)
        found["again"] = all(np.array_equal(w.numpy(), e) for w, e in zip(model.weights, expected, strict=True))
    print(json.dumps(found))


main()
