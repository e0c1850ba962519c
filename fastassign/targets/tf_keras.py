"""tf_keras models (Keras 2).

The walk over a model's objects calls tf_keras' own function: the order depends on attributes that only this function
knows how to skip, and most files of tf_keras are legacy ones, which need no walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras.src.engine import base_layer
from tf_keras.src.optimizers import optimizer as optimizers
from tf_keras.src.saving import saving_lib
from tf_keras.src.saving.legacy import hdf5_format
from tf_keras.src.utils.generic_utils import to_snake_case

from fastassign.errors import Mismatch
from fastassign.targets.layers import inner_layers, layers_held
from fastassign.targets.target import InnerLayer, LayerTargets, Layout, NodeKind, OwnVariables, Target
from fastassign.targets.variables import may_use_handles, shape_error, tf_target

_UNBUILT_SUBCLASS = (
    "Unable to load weights saved in HDF5 format into a "
    "subclassed Model which has not created its variables yet. "
    "Call the Model first, then load the weights."
)

_LAYER_METHOD = base_layer.Layer.load_own_variables
_OPTIMIZER_METHOD = optimizers._BaseOptimizer.load_own_variables
_NORMALIZATION_METHOD = tf_keras.layers.Normalization.load_own_variables
_EMPTY_METHODS = frozenset({tf_keras.utils.FeatureSpace.load_own_variables})


class TfKerasTargets:
    """A tf_keras model or layer.

    Parameters
    ----------
    model : tf_keras.layers.Layer
        The model.
    """

    library: Literal["keras", "tf_keras"] = "tf_keras"
    nested_containers = False

    def __init__(self, model: Any) -> None:
        self.model = model
        self._handles = may_use_handles()
        self._targets: dict[int, Target] = {}

    def check_built(self, layout: Layout) -> None:
        """Raise stock's error for a model that has no variables yet; for Keras 3 files stock has none."""
        if layout == "legacy":
            if not getattr(self.model, "_is_graph_network", False) and not self.model.built:
                raise Mismatch(_UNBUILT_SUBCLASS)
            self.model._assert_weights_created()

    # Legacy files.

    def layers(self) -> list[LayerTargets]:
        """Return the top-level layers that have weights, in model order."""
        found = []
        for layer in self.model.layers:
            weights = hdf5_format._legacy_weights(layer)
            if weights:
                composite = any(True for _ in layer._flatten_layers(include_self=False))
                found.append(LayerTargets(layer.name, layer, tuple(map(self.target, weights)), composite))
        return found

    def thawed(self, layer: LayerTargets) -> tuple[Target, ...]:
        """Return the variables of a layer in the order they would have if nothing in it were frozen."""
        trainable, fixed = _thawed(layer.layer)
        return tuple(map(self.target, {id(v): v for v in (*trainable, *fixed)}.values()))

    def parts(self, layer: LayerTargets) -> list[InnerLayer]:
        """Return the layers inside a top-level layer whose weights older versions stored in another form."""
        return inner_layers(layer, hdf5_format._legacy_weights)

    def loader_shapes(
        self, layer: LayerTargets, shapes: Sequence[tuple[int, ...]], version: str, backend: str | None
    ) -> list[tuple[int, ...] | int]:
        """Return the results of tf_keras' own conversion of the weights of one layer, run on stand-ins without data.

        Raises
        ------
        Mismatch
            tf_keras refuses the weights; the text is its own.
        """
        # Of the smallest dtype: a conversion that copies makes arrays of the result's size.
        stand_ins: list[Any] = [np.broadcast_to(np.zeros((), np.int8), shape) for shape in shapes]
        try:
            results = hdf5_format.preprocess_weights_for_loading(layer.layer, list(stand_ins), version, backend)
        except (ValueError, AssertionError, IndexError) as error:
            raise Mismatch(str(error)) from error
        positions = {id(stand_in): position for position, stand_in in enumerate(stand_ins)}
        # For a nested model's own weights tf_keras returns the variables, which loses the values in the file
        # (docs/internals/keras.md, B9). Their positions are still known.
        found: list[tuple[int, ...] | int] = [positions.get(id(result), tuple(result.shape)) for result in results]
        if len(results) == len(shapes):
            return [i if isinstance(results[i], tf.Variable) else each for i, each in enumerate(found)]
        return found

    def top_level(self, *, by_name: bool) -> tuple[Target, ...]:  # noqa: ARG002 - the same for both
        """Return the model's own weights."""
        return tuple(map(self.target, self.model._trainable_weights + self.model._non_trainable_weights))

    def finalizers(self) -> list[Callable[[], None]]:
        """Return the ``finalize_state`` of every layer, as stock calls it after a legacy load."""
        return [layer.finalize_state for layer in self.model._flatten_layers()]

    # Keras 3 files.

    def own(self, obj: Any) -> OwnVariables:
        """Return the variables that one object loads from its group."""
        method = getattr(type(obj), "load_own_variables", None)
        if method is None or method in _EMPTY_METHODS:
            return OwnVariables("none")
        if method is _OPTIMIZER_METHOD:
            variables = tuple(map(self.target, obj.variables))
            return OwnVariables("optimizer", variables, len(variables))
        if method is _LAYER_METHOD or method is _NORMALIZATION_METHOD:
            obj._update_trackables()
            variables = tuple(map(self.target, obj._trainable_weights + obj._non_trainable_weights))
            return OwnVariables("listed", variables, len(variables), finalize=method is _NORMALIZATION_METHOD)
        return OwnVariables("hook")

    def count_error(self, obj: Any, received: int) -> str:
        """Return tf_keras' text for a group with the wrong number of datasets."""
        variables = obj._trainable_weights + obj._non_trainable_weights
        return (
            f"Layer '{obj.name}' expected {len(variables)} variables, but received {received} variables during "
            f"loading. Expected: {[variable.name for variable in variables]}"
        )

    def shape_error(self, target: Target, received: tuple[int, ...]) -> str:
        """Return the text of ``tf.Variable.assign`` for a value of the wrong shape."""
        return shape_error(target, received)

    def children(self, obj: Any) -> Iterator[tuple[str, Any]]:
        """Yield name and value of every attribute that tf_keras' walk would look at."""
        yield from saving_lib._walk_trackable(obj)

    def node_kind(self, obj: Any) -> NodeKind:
        """Tell how tf_keras' walk treats a value."""
        if saving_lib._is_keras_trackable(obj):
            return "saveable"
        return "container" if isinstance(obj, (list, dict, tuple, set)) else ""

    def container_name(self, obj: Any) -> str:
        """Return the name that a container gives to an object."""
        return str(to_snake_case(type(obj).__name__))

    def identity(self) -> list[Any]:
        """Return layers, variables and flags, to be compared object by object."""
        parts: list[Any] = [self._handles]
        for layer in self.model._flatten_layers():
            parts += (layer, bool(layer.trainable), *layers_held(layer, _is_layer))
        optimizer = getattr(self.model, "optimizer", None)
        slots = getattr(optimizer, "variables", ())
        return [*parts, *self._weights(), optimizer, *(slots() if callable(slots) else slots)]

    def all_targets(self, layout: Layout) -> Iterator[Target]:  # noqa: ARG002 - the same for both
        """Yield every weight of the model."""
        # Lookup tables are among the weights too, though weight files do not hold them.
        return (self.target(weight) for weight in self._weights() if isinstance(weight, tf.Variable))

    def _weights(self) -> list[Any]:
        try:
            return list(self.model.weights)
        except ValueError:  # an unbuilt model has no list of weights, not even an empty one
            return []

    def target(self, variable: Any) -> Target:
        """Return the target of a variable; the same object for the same variable."""
        found = self._targets.get(id(variable))
        if found is None:
            found = self._targets[id(variable)] = tf_target(variable, handles=self._handles)
        return found


def _thawed(layer: Any) -> tuple[list[Any], list[Any]]:
    """Return trainable and other weights of a layer as if nothing were frozen; a model's own come last."""
    own = (layer._trainable_weights, layer._non_trainable_weights)
    parts = [_thawed(part) for part in layer._flatten_layers(recursive=False, include_self=False)]
    parts = [*parts, own] if isinstance(layer, tf_keras.Model) else [own, *parts]
    return [v for trainable, _ in parts for v in trainable], [v for _, fixed in parts for v in fixed]


def _is_layer(value: Any) -> bool:
    return isinstance(value, base_layer.Layer)
