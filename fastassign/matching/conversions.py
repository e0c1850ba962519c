"""Weights of older Keras versions, converted by tf_keras' own function.

tf_keras rewrites some weights on loading: Keras 1 layouts, Theano kernels, CuDNN recurrent layers. Its function
is tried on stand-ins of the right shapes (no data, no memory) to see whether it would touch anything; if so, it
runs for real when the layer's weights have been read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastassign.catalog.keras_legacy import LegacyLayout
from fastassign.catalog.open import numpy_dtype
from fastassign.catalog.records import TensorRecord
from fastassign.matching.assignment import LayerConversion
from fastassign.targets.target import LayerTargets, ModelTargets


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """What a conversion gives.

    Attributes
    ----------
    conversion : LayerConversion or None
        What has to run; ``None`` where the records stay as they are.
    shapes : tuple of tuple of int
        The shapes that come out.
    untouched : tuple of (TensorRecord or None)
        The record that a result is, where it is one as it stands in the file.
    """

    conversion: LayerConversion | None
    shapes: tuple[tuple[int, ...], ...]
    untouched: tuple[TensorRecord | None, ...]


def needed(model: ModelTargets, layer: LayerTargets, records: Sequence[TensorRecord], layout: LegacyLayout) -> bool:
    """Whether tf_keras would look at these weights more closely: old version, other count or other shapes."""
    if model.library != "tf_keras":
        return False
    shapes = [record.shape for record in records]
    return layout.keras_version == "1" or shapes != [target.shape for target in layer.targets]


def plan_conversion(
    model: ModelTargets, layer: LayerTargets, records: Sequence[TensorRecord], layout: LegacyLayout
) -> Converted:
    """Try tf_keras' conversion on stand-ins.

    Raises
    ------
    Mismatch
        tf_keras refuses the weights.
    """
    stand_ins: list[Any] = [
        np.broadcast_to(np.zeros((), numpy_dtype(record.dtype)), record.shape) for record in records
    ]
    given = list(stand_ins)
    # The protocol leaves it out: only tf_keras converts.
    results = model.convert_layer(layer.layer, given, layout.keras_version, layout.backend)  # type: ignore[attr-defined]
    by_stand_in = {id(stand_in): record for stand_in, record in zip(stand_ins, records, strict=True)}
    # A nested model's own weights come back as its variables, which would drop the values in the file (facts:
    # bug B9); by position they are still there.
    own = [not isinstance(result, np.ndarray) for result in results]
    untouched = tuple(by_stand_in.get(id(result)) for result in results)
    same = len(results) == len(records) and all(own[i] or untouched[i] is record for i, record in enumerate(records))
    if same:
        return Converted(None, tuple(record.shape for record in records), tuple(records))
    conversion = LayerConversion(
        layer.layer, layer.name, tuple(records), layer.targets, layout.keras_version, layout.backend
    )
    return Converted(conversion, tuple(tuple(result.shape) for result in results), untouched)
