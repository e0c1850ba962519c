"""How Keras 3's walk treats objects and values, by their classes."""

from __future__ import annotations

import types
from functools import cache
from typing import Any

import keras
from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.naming import to_snake_case

from fastassign.targets.target import NodeKind, OwnKind

# Since Keras 3.15 the walk enters containers inside containers, and no longer sets, which have no order.
NESTS = hasattr(saving_lib, "_container_path_present")

# The walk enters values of these types, and ignores all others.
_CONTAINERS = (list, dict, tuple) if NESTS else (list, dict, tuple, set)

# Class attributes of these types never evaluate to a saveable or a container.
_INERT = (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
          classmethod, staticmethod, type, str, int, float, type(None))  # fmt: skip

_LAYER_METHOD = keras.layers.Layer.load_own_variables
_OPTIMIZER_METHOD = keras.optimizers.Optimizer.load_own_variables
_NORMALIZATION_METHOD = keras.layers.Normalization.load_own_variables
# FeatureSpace's method is empty: the walk reaches its layers through its attributes.
_EMPTY_METHODS = frozenset({keras.utils.FeatureSpace.load_own_variables})
_KERNEL_METHODS = frozenset(
    layer.load_own_variables
    for layer in (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Embedding, keras.layers.Conv2D)
    if layer.load_own_variables is not _LAYER_METHOD
)


class ClassKnowledge:
    """The properties that all objects of one class share.

    Parameters
    ----------
    cls : type
        The class.
    obj_type : str
        Keras' name for the kind of object.

    Attributes
    ----------
    skip : frozenset of str
        Attributes that the walk ignores.
    candidates : frozenset of str
        Attributes of the class that may lead to an object or a container.
    has_layers_first : bool
        Whether the walk begins with the attribute ``layers``.
    snake_case : str
        The name of the class in snake case.
    kind : OwnKind
        How its objects take their own variables.
    assigns_kernel : bool
        Whether its method assigns ``kernel`` and ``bias`` (or ``embeddings``) one by one, unless the layer is quantised
        or has LoRA.
    finalizes : bool
        Whether ``finalize_state`` follows.
    """

    __slots__ = ("assigns_kernel", "candidates", "finalizes", "has_layers_first", "kind", "skip", "snake_case")

    def __init__(self, cls: type, obj_type: str) -> None:
        skip = self.skip = _skipset(obj_type)
        self.has_layers_first = obj_type in {"Sequential", "Functional"}
        self.snake_case = to_snake_case(cls.__name__)
        # Properties and other descriptors have to be evaluated on each object; plain functions never matter.
        self.candidates = frozenset(
            name for name in dir(cls) if not name.startswith("__") and name not in skip and not _is_inert(cls, name)
        )
        method = getattr(cls, "load_own_variables", None)
        self.kind = _kind_of(method)
        self.assigns_kernel = method in _KERNEL_METHODS
        self.finalizes = method is _NORMALIZATION_METHOD


@cache
def _skipset(obj_type: str) -> frozenset[str]:
    # Keras builds a temporary object in each call; one call per kind of object and process is enough.
    return frozenset(saving_lib.get_attr_skipset(obj_type))


# How the walk treats values of a type: looked up 60 times for each object, found once for each type.
NODE_KINDS: dict[type, NodeKind] = {}


def node_kind(obj: Any) -> NodeKind:
    """Tell how Keras' walk treats a value: it enters it as an object or as a container, or ignores it."""
    cls = type(obj)
    kind = NODE_KINDS.get(cls)
    if kind is None:
        kind = "saveable" if isinstance(obj, KerasSaveable) else "container" if isinstance(obj, _CONTAINERS) else ""
        # A class defined inside a function may be made anew in every call, and keeps alive the objects that the
        # function refers to: Keras has one that would keep the model.
        if "<locals>" not in cls.__qualname__:
            NODE_KINDS[cls] = kind
    return kind


def _is_inert(cls: type, name: str) -> bool:
    """Whether a class attribute can never lead the walk anywhere."""
    for base in cls.__mro__:
        if name in base.__dict__:
            # Keras' own property returns names of variables, in six lists that each call makes anew.
            is_names = name == "variable_serialization_spec" and base.__module__.startswith("keras.")
            return is_names or isinstance(base.__dict__[name], _INERT)
    return False


def _kind_of(method: Any) -> OwnKind:
    if method is None or method in _EMPTY_METHODS:
        return "none"
    if method is _LAYER_METHOD or method is _NORMALIZATION_METHOD:
        return "listed"
    return "optimizer" if method is _OPTIMIZER_METHOD else "hook"
