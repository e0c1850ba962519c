"""Go on training a model from an ``.h5`` file where it was.

The file holds the architecture, the weights and the state of the optimizer. Files of older versions of Keras are
brought up to the installed one; this script makes its own.
"""

import logging
import tempfile
from pathlib import Path

import keras
import numpy as np

import fastassign as fa

logging.getLogger("absl").setLevel(logging.ERROR)  # Keras advises against .h5 files

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(256, 8)).astype(np.float32)
TARGETS = INPUTS.sum(axis=1, keepdims=True)


def train(model: keras.Model, epochs: int) -> float:
    """Train, and return the loss."""
    return model.fit(INPUTS, TARGETS, epochs=epochs, shuffle=False, verbose=0).history["loss"][-1]


def main(path: Path) -> None:
    """Train, save, load, and see that both models go on alike."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
    print(f"loss after 5 epochs: {train(model, 5):.4f}")
    model.save(path)

    reports: list[fa.Report] = []
    resumed = fa.load_model(path, options=fa.LoadOptions(on_report=reports.append))
    print(f"loaded {reports[0].assigned} variables; the optimizer is at step {int(resumed.optimizer.iterations)}")

    expected, found = train(model, 5), train(resumed, 5)
    print(f"loss after 5 more epochs: {expected:.4f} without a break, {found:.4f} after loading")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fastassign-example-") as place:
        main(Path(place) / "model.h5")
