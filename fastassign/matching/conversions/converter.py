"""Weights of older Keras versions, of Theano and of CuDNN's layers, converted where the shapes call for it.

For each layer the records of the file become values of its variables: a record as it is, or a recipe. Nothing is
guessed: a conversion is made where the version or the count of the arrays asks for it and the shapes fit afterwards.
Otherwise the records stay as they are, and comparing their shapes leads to the library's own error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from fastassign.catalog.keras_legacy import LegacyContents
from fastassign.catalog.records import TensorRecord
from fastassign.matching.conversions import convolutions, recipes, recurrent
from fastassign.matching.conversions.recipes import Recipe
from fastassign.options import LoadOptions
from fastassign.targets.target import InnerLayer, LayerTargets, ModelTargets

Value = TensorRecord | Recipe

_THEANO = "theano"


class Converter:
    """Conversions for one file and one model.

    Parameters
    ----------
    model : ModelTargets
        The model.
    saved : LegacyContents
        The layers and weights that the file lists.
    options : LoadOptions
        ``conv_flip`` and ``reshape``.
    """

    def __init__(self, model: ModelTargets, saved: LegacyContents, options: LoadOptions) -> None:
        self._model, self._saved, self._options = model, saved, options
        self._is_stock_tf_keras = model.library == "tf_keras"
        self._is_keras_1 = saved.keras_version == "1"
        # Theano convolves with flipped kernels; neither library flips them back.
        self._flips = saved.backend == _THEANO if options.conv_flip is None else options.conv_flip

    def values(self, layer: LayerTargets, records: Sequence[TensorRecord]) -> Sequence[Value]:
        """Return the values for the variables of a layer, in their order.

        Returns
        -------
        sequence of (TensorRecord or Recipe)
            Where the weights do not fit, another number of values than of variables, or values of other shapes.

        Raises
        ------
        Mismatch
            tf_keras refuses the weights; the text is its own.
        """
        if not self._is_concerned(layer, records):
            return records
        parts = self._model.parts(layer)
        values = self._converted(layer, parts, records)
        if values is not None:
            values = self._adapted(layer, parts if self._flips else (), values)
            if _fit(values, layer):
                return values
        if self._is_stock_tf_keras:
            return self._of_tf_keras(layer, records, values)
        # Keras 3 checks the number of arrays in the file before it looks at shapes.
        return records if values is None or len(records) != len(values) else values

    def reshaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Return a value with another shape, where ``reshape`` allows it and the size is right."""
        return reshaped(value, shape) if self._options.reshape else value

    def _is_concerned(self, layer: LayerTargets, records: Sequence[TensorRecord]) -> bool:
        """Whether anything may have to be converted; for most files the answer is no."""
        if self._flips or not _fit(records, layer):
            return True
        # tf_keras goes by the version alone; Keras 3 loads weights that fit, unless their names are those of Keras 1.
        return self._is_keras_1 and (self._is_stock_tf_keras or any(map(convolutions.is_keras_1_name, records)))

    def _converted(
        self, layer: LayerTargets, parts: Sequence[InnerLayer], records: Sequence[TensorRecord]
    ) -> list[Value] | None:
        """Convert each part; ``None`` if the number of arrays is wrong."""
        counts = self._counts(layer, parts, len(records))
        if sum(counts) != len(records):
            return None
        starts = [0, *accumulate(counts)]
        values: list[Value] = [records[min(start, len(records) - 1)] for start in starts[:-1]]
        for part in parts:
            own = [record for p in part.positions for record in records[starts[p] : starts[p] + counts[p]]]
            wanted = [layer.targets[position].shape for position in part.positions]
            found = self._part(part, own, wanted)
            if found is None and len(own) != len(wanted):
                return None
            if found is None or len(found) != len(wanted):
                continue
            fits = all(value.shape == shape for value, shape in zip(found, wanted, strict=True))
            if fits or self._is_stock_tf_keras or len(own) != len(wanted):
                for position, value in zip(part.positions, found, strict=True):
                    values[position] = value
        return values

    def _counts(self, layer: LayerTargets, parts: Sequence[InnerLayer], received: int) -> list[int]:
        """Return how many arrays of the file hold each weight."""
        counts = [1] * len(layer.targets)
        if self._is_keras_1 and received != len(counts):
            for part in parts:
                count = recurrent.keras_1_count(part.kind, len(part.positions))
                if count > len(part.positions):
                    # All arrays of the layer are counted for its first weight.
                    for position in part.positions:
                        counts[position] = 0
                    counts[part.positions[0]] = count
        return counts

    def _part(
        self, part: InnerLayer, records: Sequence[TensorRecord], wanted: Sequence[tuple[int, ...]]
    ) -> Sequence[Value] | None:
        if len(records) > len(wanted):
            return recurrent.from_gates(part.kind, records, part.data_format)
        if part.kind not in convolutions.KERNELS:
            return recurrent.from_other_implementation(part.kind, records, wanted)
        count = convolutions.KERNELS[part.kind]
        kernel = recipes.stored(records[0])
        if self._is_keras_1 and part.kind != "ConvLSTM2D":
            prefers_stored = not (self._is_stock_tf_keras or convolutions.is_keras_1_name(records[0]))
            kernel = convolutions.from_keras_1(
                part.kind, kernel, wanted[0], part.data_format, prefers_stored=prefers_stored
            )
        kernels = [kernel, *map(recipes.stored, records[1:count])]
        if kernel.shape != wanted[0] and self._is_stock_tf_keras and (self._is_keras_1 or not self._options.reshape):
            kernels = list(map(convolutions.undone, kernels))
        return [*kernels, *records[count:]]

    def _adapted(self, layer: LayerTargets, flipped: Sequence[InnerLayer], values: list[Value]) -> list[Value]:
        for part in flipped:
            for position in part.positions[: convolutions.KERNELS.get(part.kind, 0)]:
                values[position] = convolutions.flipped(values[position])
        return [self.reshaped(value, target.shape) for value, target in zip(values, layer.targets, strict=True)]

    def _of_tf_keras(
        self, layer: LayerTargets, records: Sequence[TensorRecord], values: Sequence[Value] | None
    ) -> Sequence[Value]:
        """Return the result of tf_keras' own function for weights that do not fit, which may be an error."""
        shapes = [record.shape for record in records]
        found = self._model.loader_shapes(layer, shapes, self._saved.keras_version, self._saved.backend)
        results: list[Value] = []
        for i, each in enumerate(found):
            if isinstance(each, int):
                wanted = layer.targets[i].shape if i < len(layer.targets) else records[each].shape
                results.append(self.reshaped(records[each], wanted))
            elif values is not None and i < len(values) and values[i].shape == each:
                results.append(values[i])
            else:
                results.append(recipes.unknown(each))
        return results


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """Return a value with another shape, where its size is right."""
    if value.shape == shape or math.prod(value.shape) != math.prod(shape):
        return value
    recipe = value if isinstance(value, Recipe) else recipes.stored(value)
    return recipe.reshaped(shape)


def _fit(values: Sequence[Value], layer: LayerTargets) -> bool:
    if len(values) != len(layer.targets):
        return False
    for value, target in zip(values, layer.targets, strict=True):  # noqa: SIM110 - half the time of all()
        if value.shape != target.shape:
            return False
    return True
