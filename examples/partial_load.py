"""Load a backbone out of a larger file, under another name.

The file holds a classifier: a backbone of two layers, and a head of ten classes. The new model has the same backbone,
called "encoder", and a head of three classes, which keeps its initial values.
"""

import logging
import tempfile
from pathlib import Path

import keras
import numpy as np

import fastassign as fa

logging.getLogger("absl").setLevel(logging.ERROR)  # Keras advises against .h5 files


def classifier(name: str, classes: int) -> keras.Model:
    """Build a backbone with a name, and a head."""
    inputs = keras.Input((16,))
    hidden = keras.layers.Dense(32, activation="relu", name="low")(inputs)
    backbone = keras.Model(inputs, keras.layers.Dense(32, activation="relu", name="high")(hidden), name=name)
    outputs = keras.layers.Dense(classes, name="head")(backbone(inputs))
    return keras.Model(inputs, outputs)


def main(path: Path) -> None:
    """Fail to load all, see why, and load what fits."""
    trained, model = classifier("backbone", classes=10), classifier("encoder", classes=3)
    trained.save(path)

    try:
        fa.load_weights(model, path)
    except fa.Mismatch as error:
        print(f"it does not fit, and nothing has changed:\n{error.diff}\n")

    options = fa.LoadOptions(rename={"backbone": "encoder"}, include="encoder")
    print(f"plan:\n{fa.plan(model, path, options=options)}\n")

    report = fa.load_weights(model, path, options=options)
    print(f"loaded {report.assigned} variables; skipped:", *report.skipped, sep="\n  ")
    pairs = zip(trained.get_layer("backbone").weights, model.get_layer("encoder").weights, strict=True)
    print(f"the backbone is that of the file: {all(np.array_equal(old, new) for old, new in pairs)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fastassign-example-") as place:
        main(Path(place) / "trained.h5")
