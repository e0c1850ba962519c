"""The models of ``fastassign bench --device gpu``, and their files. None of them is ever called."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fastassign
from fastassign.benchmarks.cases.models import gpt_like


def tiny_kernels(*, count: int = 5000) -> Any:
    """Build a model of equal variables of 4 KB each: 20 MB in 5,000 tensors."""
    return stack_of([(f"tiny{i}", 32, 32) for i in range(count)])


def large_kernels(*, width: int = 4096, inner: int = 11008, vocabulary: int = 32000, blocks: int = 10) -> Any:
    """Build a decoder's kernels of a Llama-like shape, in float32: 8.6 GB in 71 tensors of 67 to 524 MB."""
    sizes = [("embedding", vocabulary, width)]
    for block in range(blocks):
        sizes += [(f"block{block}_{name}", width, width) for name in ("query", "key", "value", "output")]
        sizes += [(f"block{block}_{name}", width, inner) for name in ("gate", "up")]
        sizes.append((f"block{block}_down", inner, width))
    return stack_of(sizes)


def stack_of(sizes: list[tuple[str, int, int]]) -> Any:
    """Return a built model of kernels with cheap initial values."""
    import keras

    class Stack(keras.Model):  # type: ignore[misc] # keras is untyped
        def __init__(self) -> None:
            super().__init__()
            self.kernels = []
            for name, height, width in sizes:
                layer = keras.layers.Dense(width, use_bias=False, kernel_initializer="zeros", name=name)
                layer.build((None, height))
                self.kernels.append(layer)
            self.built = True

    return Stack()


@contextmanager
def policy(name: str) -> Iterator[None]:
    """Use a dtype policy for the layers that are made in this block."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def built_on(device: str, build: Callable[[], Any]) -> Any:
    """Build a model whose variables stand on a device."""
    import tensorflow as tf

    try:
        with tf.device(device):
            return build()
    except Exception:  # noqa: BLE001 - the device may lack an initialiser's op, and a load replaces its value anyway
        with tf.device(device), fastassign.deferred_init():
            return build()


def save_random(model: Any, path: Path) -> None:
    """Give every variable random numbers, and save them with Keras."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.random(tuple(weight.shape), np.float32) - np.float32(0.5))
    model.save_weights(path)


def save_like(small: Any, large: Any, path: Path) -> None:
    """Write the file of a large float32 model without having its values in memory.

    Parameters
    ----------
    small, large : keras.Model
        Two models with the same layers, by name. Keras saves the small one, then its datasets are replaced.
    path : pathlib.Path
        A ``.weights.h5`` file.
    """
    import h5py

    small.save_weights(path)
    keys = {name: key for name, _, _, _, key, _ in fastassign.plan(small, path).rows()}
    rng = np.random.default_rng(0)
    block = rng.random(1 << 22, np.float32) - np.float32(0.5)
    with h5py.File(path, "r+") as file:
        for number, weight in enumerate(large.weights):
            key, shape = keys[weight.path], tuple(weight.shape)
            del file[key]
            dataset = file.create_dataset(key, shape, np.float32)
            rows = max(block.size // shape[1], 1)
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                values = np.resize(block, count * shape[1]).reshape(count, shape[1])
                # Every piece is different, so that a misplaced one is noticed.
                values[0, 0] = number + start / 1e6
                dataset[start : start + count] = values


def available_bytes() -> int:
    """Return the memory that the system has left, including page cache that it may drop."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@dataclass(frozen=True, slots=True)
class Case:
    """A model to load, and its file.

    Attributes
    ----------
    title : str
        A description for the table.
    build : callable
        Builds the model.
    save : callable
        Writes the file into a folder, given the model and the folder, and returns the path. G and H share one file.
    nbytes : int
        The approximate size of the file.
    is_large : bool
        Whether the case is left out where disk or memory is short, unless it is asked for.
    """

    title: str
    build: Callable[[], Any]
    save: Callable[[Any, Path], Path]
    nbytes: int
    is_large: bool = False

    def fits(self, folder: Path) -> bool:
        """Whether disk and memory are enough for the file, the page cache, and the values to compare with."""
        free = shutil.disk_usage(folder).free
        return not self.is_large or (free > 2 * self.nbytes and available_bytes() > 4 * self.nbytes)


def _save_gpt(model: Any, folder: Path) -> Path:
    path = folder / "G.weights.h5"
    if not path.exists():
        save_random(model, path)
    return path


def _save_half(model: Any, folder: Path) -> Path:
    del model  # the file holds the model in float32
    path = folder / "G.weights.h5"
    return path if path.exists() else _save_gpt(built_on("/CPU:0", gpt_like), folder)


def _save_tiny(model: Any, folder: Path) -> Path:
    path = folder / "T.weights.h5"
    save_random(model, path)
    return path


def _save_large(model: Any, folder: Path) -> Path:
    path = folder / "X.weights.h5"
    save_like(built_on("/CPU:0", lambda: large_kernels(width=8, inner=8, vocabulary=8)), model, path)
    return path


def _half() -> Any:
    with policy("bfloat16"):
        return gpt_like()


CASES: dict[str, Case] = {
    "G": Case("GPT-like, float32", gpt_like, _save_gpt, 638_000_000),
    "H": Case("G's file into bfloat16 variables", _half, _save_half, 638_000_000),
    "T": Case("5,000 variables of 4 KB", tiny_kernels, _save_tiny, 20_480_000),
    "X": Case("Llama-like kernels, float32", large_kernels, _save_large, 8_600_000_000, is_large=True),
}
