"""A server that gets new weights while it answers requests.

Four threads answer requests, as those of a web server would. Meanwhile the next checkpoint is read in the background
and all variables change at once: no request sees old weights beside new ones.
"""

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np

import fastassign as fa


def build() -> keras.Model:
    """Build the model that is served."""
    inputs = keras.Input((8,), name="inputs")
    hidden = keras.layers.Dense(64, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(1, name="score")(hidden), name="scorer")


def save_checkpoint(path: Path, value: float) -> None:
    """Write a checkpoint as a training job would; here all weights have one value."""
    model = build()
    for weight in model.weights:
        weight.assign(np.full(weight.shape, value))
    model.save_weights(path)


def answer(model: keras.Model, lock: threading.RLock, request: np.ndarray) -> float:
    """Answer a request; the lock keeps the weights as they are meanwhile."""
    with lock:
        return float(model(request)[0, 0])


def main(folder: Path) -> None:
    """Serve two checkpoints, one after the other, without a pause."""
    save_checkpoint(folder / "step-1000.weights.h5", 0.5)
    save_checkpoint(folder / "step-2000.weights.h5", 1.0)
    model, request = build(), np.ones((1, 8), np.float32)

    options = fa.LoadOptions(swap="together")
    with fa.Loader(model, options=options) as loader, ThreadPoolExecutor(4) as server:
        loader.load(folder / "step-1000.weights.h5")
        old = answer(model, loader.lock, request)

        future = loader.load_async(folder / "step-2000.weights.h5")
        answers = [server.submit(answer, model, loader.lock, request) for _ in range(200)]
        report = future.result()  # raises what load_weights would
        new = answer(model, loader.lock, request)

        seen = {each.result() for each in answers}
    print(f"old weights answer {old:g}, new ones {new:g}")
    print(f"{report.assigned} variables changed; the plan of the first load was {report.plan}")
    print(f"answers that were neither old nor new: {len(seen - {old, new})}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="fastassign-example-") as place:
        main(Path(place))
