"""Load with progress: a bar on a terminal, or a function of your own.

A progress function runs in the thread that loads, after each variable. It may raise to stop the load.
"""

import tempfile
from pathlib import Path

import keras

import fastassign as fa


class Percent:
    """Prints a line whenever a tenth of the bytes has arrived."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, event: fa.ProgressEvent) -> None:
        """Print how far the load is."""
        tenths = 10 * event.done_bytes // event.total_bytes
        if tenths > self.shown:
            self.shown = tenths
            megabytes = event.done_bytes / 1e6
            print(f"{10 * tenths:3} %  {megabytes:5.1f} MB  {event.done_variables}/{event.total_variables} variables")


def main(path: Path) -> None:
    """Load a model of 20 layers, and print what the load did."""
    inputs = outputs = keras.Input((512,))
    for _ in range(20):
        outputs = keras.layers.Dense(512)(outputs)
    model = keras.Model(inputs, outputs)
    model.save_weights(path)

    print("with a bar, where standard error is a terminal:")
    fa.load_weights(model, path, progress=True)

    print("with a function:")
    report = fa.load_weights(model, path, progress=Percent())

    print(f"the report:\n{report}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fastassign-example-") as place:
        main(Path(place) / "model.weights.h5")
