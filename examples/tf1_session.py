"""Give the variables of a TensorFlow 1 graph their values, in a session.

Nothing is added to the graph by the second load, so a server can load again and again.
"""

import tempfile
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf

import fastassign as fa


def main(path: Path) -> None:
    """Load a file into variables without a model, then assign arrays."""
    with h5py.File(path, "w") as file:
        file["dense/kernel"] = np.full((4, 3), 2.0, np.float32)
        file["dense/bias"] = np.zeros(3, np.float32)

    graph = tf.Graph()
    with graph.as_default():
        inputs = tf.compat.v1.placeholder(tf.float32, (None, 4))
        kernel = tf.compat.v1.get_variable("dense/kernel", (4, 3))
        bias = tf.compat.v1.get_variable("dense/bias", (3,))
        outputs = tf.matmul(inputs, kernel) + bias

    with tf.compat.v1.Session(graph=graph) as session:
        # No initialiser is run: the variables are found in the file by their names.
        report = fa.load_weights([kernel, bias], path)
        print(f"loaded {report.assigned} variables from the file")
        print(f"outputs: {session.run(outputs, {inputs: np.ones((1, 4))})[0].tolist()}")

        operations = len(graph.get_operations())
        fa.assign([(bias, [1.0, 2.0, 3.0])])  # arrays in place of a file
        print(f"outputs: {session.run(outputs, {inputs: np.ones((1, 4))})[0].tolist()}")
        print(f"operations added by the second load: {len(graph.get_operations()) - operations}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fastassign-example-") as place:
        main(Path(place) / "weights.h5")
