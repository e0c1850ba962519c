"""Keras 3 models on the TensorFlow backend.

The walk over a model's objects is Keras' own (``saving_lib._walk_saveable``): the same objects in the same order. Keras
lists every attribute of every object (a ``dir()`` and a temporary layer per object, 0.28 s for ResNet152); here the
attributes that come from a class are found once, so that an object costs a look into its ``__dict__``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.saving import saving_lib

from fastassign.errors import Mismatch, Unsupported
from fastassign.targets.keras3_classes import NESTS, NODE_KINDS, ClassKnowledge, node_kind
from fastassign.targets.layers import inner_layers, layers_held
from fastassign.targets.target import InnerLayer, LayerTargets, Layout, NodeKind, OwnVariables, Target
from fastassign.targets.variables import keras_target, may_use_handles, shape_error

_UNBUILT = (
    "You are loading weights into a model that has not yet been built. "
    "Try building the model first by calling it on some data or "
    "by using `build()`."
)

_WEIGHT_LISTS = (keras.layers.Layer.trainable_weights, keras.layers.Layer.non_trainable_weights)


class Keras3Targets:
    """A Keras 3 model or layer.

    Parameters
    ----------
    model : keras.Layer
        The model.
    """

    library: Literal["keras", "tf_keras"] = "keras"
    nested_containers = NESTS

    def __init__(self, model: Any) -> None:
        if keras.backend.backend() != "tensorflow":
            raise Unsupported(
                f"the model runs on the {keras.backend.backend()} backend, not on TensorFlow",
                hint="set KERAS_BACKEND=tensorflow",
            )
        self.model = model
        self._handles = may_use_handles() and not in_stateless_scope()
        self._targets: dict[int, Target] = {}
        self._classes: dict[type, ClassKnowledge] = {}

    def check_built(self, layout: Layout) -> None:
        """Raise stock's error for a model that has no variables yet."""
        if layout == "keras3" and not self.model.built:
            raise Mismatch(_UNBUILT)

    # Legacy files.

    def layers(self) -> list[LayerTargets]:
        """Return the top-level layers that have weights, in model order."""
        found = []
        for layer in self.model.layers:
            weights = _legacy_order(layer)
            if weights:
                targets = tuple(map(self.target, weights))
                found.append(LayerTargets(layer.name, layer, targets, composite=bool(layer._layers)))
        return found

    def thawed(self, layer: LayerTargets) -> tuple[Target, ...]:
        """Return the variables of a layer in the order they would have if nothing in it were frozen."""
        thawed = {id(v) for part in layer.layer._flatten_layers() for v in part._trainable_variables}
        weights = list(layer.layer.weights)
        ordered = [v for v in weights if id(v) in thawed] + [v for v in weights if id(v) not in thawed]
        return tuple(map(self.target, ordered))

    def parts(self, layer: LayerTargets) -> list[InnerLayer]:
        """Return the layers inside a top-level layer whose weights older versions stored in another form."""
        return inner_layers(layer, _legacy_order)

    def loader_shapes(
        self,
        layer: LayerTargets,  # noqa: ARG002 - the same for every layer
        shapes: Sequence[tuple[int, ...]],
        version: str,  # noqa: ARG002
        backend: str | None,  # noqa: ARG002
    ) -> list[tuple[int, ...] | int]:
        """Return every array as it is: Keras 3 converts nothing."""
        return list(range(len(shapes)))

    def top_level(self, *, by_name: bool) -> tuple[Target, ...]:
        """Return the model's own weights.

        Stock filters them with ``v in model.weights``, which compares values and fails for two or more
        (docs/internals/keras.md, B3); here identity is compared.
        """
        own = self.model._trainable_variables + self.model._non_trainable_variables
        if not by_name:
            known = {id(variable) for variable in self.model.weights}
            own = [variable for variable in own if id(variable) in known]
        return tuple(map(self.target, own))

    def finalizers(self) -> list[Callable[[], None]]:
        """Return the ``finalize_state`` of every layer.

        Stock calls it only on top-level layers, so that a nested Normalization keeps its old constants
        (docs/internals/keras.md, B4).
        """
        return [
            inner.finalize_state
            for layer in self.model.layers
            for inner in (layer._flatten_layers() if layer._layers else (layer,))
            if hasattr(inner, "finalize_state") and inner.weights
        ]

    # Keras 3 files.

    def own(self, obj: Any) -> OwnVariables:
        """Return the variables that one object loads from its group."""
        knowledge = self._knowledge(obj)
        kind = knowledge.kind
        if "load_own_variables" in getattr(obj, "__dict__", ()):
            return OwnVariables("hook")
        if kind == "hook" and knowledge.assigns_kernel:
            return self._kernel_and_bias(obj)
        if kind == "listed":
            return self._listed(obj, finalize=knowledge.finalizes)
        if kind == "optimizer":
            variables = tuple(map(self.target, obj.variables))
            return OwnVariables("optimizer", variables, len(variables))
        return OwnVariables(kind)

    def _listed(self, obj: Any, *, finalize: bool) -> OwnVariables:
        variables = tuple(map(self.target, obj._trainable_variables + obj._non_trainable_variables))
        return OwnVariables("listed", variables, len(variables), finalize)

    def _kernel_and_bias(self, layer: Any) -> OwnVariables:
        if getattr(layer, "lora_enabled", False):
            return OwnVariables("hook")
        expected = len(layer._trainable_variables) + len(layer._non_trainable_variables)
        if getattr(layer, "quantization_mode", None) is not None:
            return OwnVariables("hook", expected=expected)
        if not layer.built:
            return OwnVariables("listed", (), expected)
        variables = []
        for name in _assigned_names(layer):
            # `kernel` and `embeddings` are properties that add LoRA to the variable behind them.
            variable = getattr(layer, f"_{name}" if name in {"kernel", "embeddings"} else name, None)
            if variable is None and name == "bias":
                continue
            if not hasattr(variable, "_value"):
                return OwnVariables("hook")
            variables.append(self.target(variable))
        return OwnVariables("listed", tuple(variables), expected)

    def count_error(self, obj: Any, received: int) -> str:
        """Return Keras' text for a group with the wrong number of datasets."""
        variables = obj._trainable_variables + obj._non_trainable_variables
        try:
            obj._check_load_own_variables(_Count(received))
        except ValueError as error:
            return str(error)
        return (
            f"Layer '{obj.name}' expected {len(variables)} variables, but received {received} variables during "
            f"loading. Expected: {[variable.name for variable in variables]}"
        )

    def shape_error(self, target: Target, received: tuple[int, ...]) -> str:
        """Return the text of ``keras.Variable.assign`` for a value of the wrong shape."""
        return shape_error(target, received)

    def children(self, obj: Any) -> Iterator[tuple[str, Any]]:
        """Yield name and value of every attribute that Keras' walk would enter."""
        if getattr(type(obj), "__dir__", None) is not object.__dir__:
            yield from saving_lib._walk_saveable(obj)
            return
        knowledge = self._knowledge(obj)
        if knowledge.has_layers_first:
            yield "layers", obj.layers
        skip, names, known = knowledge.skip, set(knowledge.candidates), NODE_KINDS.get
        for name, value in vars(obj).items():
            # Nearly all of the 60 attributes of a layer are of types that the walk ignores, so these are tested first.
            kind = known(type(value))
            if kind is None:
                kind = node_kind(value)
            if kind and name not in skip and not name.startswith("__"):
                names.add(name)
        for name in sorted(names, key=saving_lib._name_key):
            try:
                value = getattr(obj, name)
            except Exception:  # noqa: BLE001, S112 - a property may raise anything; Keras ignores it too
                continue
            yield name, value

    def node_kind(self, obj: Any) -> NodeKind:
        """Tell how the walk treats a value."""
        return node_kind(obj)

    def container_name(self, obj: Any) -> str:
        """Return the name that a container gives to an object."""
        return str(self._knowledge(obj).snake_case)

    def identity(self) -> list[Any]:
        """Return layers, variables and flags, to be compared object by object."""
        parts: list[Any] = [self._handles]
        # `model.variables` would ask every layer for those of all layers inside it: ten times slower for ResNet152.
        for layer in self.model._flatten_layers():
            parts += (layer, layer.trainable)
            parts += layer._trainable_variables
            parts += layer._non_trainable_variables
            parts += [generator.state for generator in layer._seed_generators]
            parts += layers_held(layer, _is_layer)
        optimizer = getattr(self.model, "optimizer", None)
        return [*parts, optimizer, *getattr(optimizer, "variables", ())]

    def all_targets(self, layout: Layout) -> Iterator[Target]:
        """Yield every weight that a file of this layout could fill."""
        # For a legacy file the layers were listed already, with all that is inside them.
        return iter(self._targets.values()) if layout == "legacy" else map(self.target, self.model.weights)

    def target(self, variable: Any) -> Target:
        """Return the target of a Keras variable; the same object for the same variable."""
        found = self._targets.get(id(variable))
        if found is None:
            found = keras_target(variable, handles=self._handles)
            self._targets[id(variable)] = found
        return found

    def _knowledge(self, obj: Any) -> ClassKnowledge:
        cls = type(obj)
        found = self._classes.get(cls)
        if found is None:
            found = ClassKnowledge(cls, obj._obj_type())
            self._classes[cls] = found
        return found


def _is_layer(value: Any) -> bool:
    return isinstance(value, keras.layers.Layer)


def _legacy_order(layer: Any) -> list[Any]:
    """Return a layer's trainable weights, then the others: the order of legacy files."""
    cls = type(layer)
    if (cls.trainable_weights, cls.non_trainable_weights) != _WEIGHT_LISTS:
        return list(layer.trainable_weights + layer.non_trainable_weights)
    # The same as the two properties, with one walk over the layers inside instead of two.
    weights = layer.weights
    if not layer.trainable:
        return list(weights)
    return [v for v in weights if v.trainable] + [v for v in weights if not v.trainable]


class _Count:
    """Takes the place of a store with this number of datasets."""

    def __init__(self, count: int) -> None:
        self._count = count

    def keys(self) -> range:
        return range(self._count)


def _assigned_names(layer: Any) -> list[str]:
    specification = getattr(layer, "variable_serialization_spec", None)
    if specification is not None and None in specification:
        return list(specification[None])
    if isinstance(layer, keras.layers.Embedding):
        return ["embeddings"]
    return ["kernel", "bias"]
