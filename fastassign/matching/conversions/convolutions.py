"""Convolution kernels as Keras 1 and Theano stored them.

Sources: ``preprocess_weights_for_loading`` in ``hdf5_format.py`` of tf_keras for the orders of axes;
``convert_kernel`` in ``keras/utils/conv_utils.py`` of Keras 2 for the flip, which tf_keras dropped.
"""

from __future__ import annotations

import re

from fastassign.catalog.records import TensorRecord
from fastassign.matching.conversions import recipes
from fastassign.matching.conversions.recipes import Recipe

# How many of the first weights of a layer are kernels.
KERNELS = {"Conv1D": 1, "Conv2D": 1, "Conv3D": 1, "Conv2DTranspose": 1, "ConvLSTM2D": 2}

# The order in which to take the axes of a kernel of Keras 1, by class and data format of the layer. Theano's order
# (filters, channels, rows, columns) goes with "channels_first".
_KERAS_1_AXES = {
    ("Conv2D", "channels_first"): (2, 3, 1, 0),
    ("Conv2DTranspose", "channels_last"): (0, 1, 3, 2),
    ("Conv2DTranspose", "channels_first"): (2, 3, 0, 1),
    ("Conv3D", "channels_first"): (2, 3, 4, 1, 0),
}

# A kernel has two axes that are not spatial.
_LEAST_AXES = 2

# The transposition that tf_keras applies to any kernel of a wrong shape. It undoes (2, 3, 1, 0), for files without a
# version whose kernels are in today's order; no other known layout becomes a kernel by it.
_UNDO = (3, 2, 0, 1)

# convolution2d_1_W, conv1_W:0: in Keras 2 and later the name is kernel.
_KERAS_1_NAME = re.compile(r"_W(:\d+)?$")


def is_keras_1_name(record: TensorRecord) -> bool:
    """Whether a kernel has a name of Keras 1."""
    return _KERAS_1_NAME.search(record.key) is not None


def from_keras_1(
    kind: str, kernel: Recipe, wanted: tuple[int, ...], data_format: str, *, prefers_stored: bool
) -> Recipe:
    """Bring a kernel of a file that names no version into the order of today.

    Parameters
    ----------
    kind, data_format : str
        Class and data format of the layer.
    kernel : Recipe
        The kernel as the file has it.
    wanted : tuple of int
        The shape of the layer's own kernel.
    prefers_stored : bool
        Whether a kernel that already fits is left as it is; otherwise class and data format alone decide, as in
        tf_keras.

    Returns
    -------
    Recipe
        The kernel as it is, if it does not fit after the conversion.
    """
    fits = kernel.shape == wanted
    if kind == "Conv1D":
        return _conv1d(kernel, wanted)
    axes = _KERAS_1_AXES.get((kind, data_format))
    if axes is None or len(axes) != len(kernel.shape) or (fits and prefers_stored):
        return kernel
    converted = kernel.transposed(*axes)
    return kernel if fits and converted.shape != wanted else converted


def undone(kernel: Recipe) -> Recipe:
    """Transpose a kernel of a wrong shape as tf_keras does, for every version."""
    return kernel.transposed(*_UNDO) if len(kernel.shape) == len(_UNDO) else kernel


def flipped(kernel: TensorRecord | Recipe) -> Recipe:
    """Flip a kernel, from Theano's convolution to TensorFlow's correlation."""
    recipe = kernel if isinstance(kernel, Recipe) else recipes.stored(kernel)
    return recipe.flipped() if len(recipe.shape) > _LEAST_AXES else recipe


def _conv1d(kernel: Recipe, wanted: tuple[int, ...]) -> Recipe:
    """Keras 1.2 wrote (length, 1, channels, filters), Keras 1.1 (filters, channels, length, 1)."""
    if len(wanted) == 3:
        length, channels, filters = wanted
        if kernel.shape == (length, 1, channels, filters):
            return kernel.without_axis(1)
        if kernel.shape == (filters, channels, length, 1):
            return kernel.transposed(2, 3, 1, 0).without_axis(1)
    return kernel
