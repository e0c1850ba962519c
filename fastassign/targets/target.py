"""One variable of a model, as the rooms to the right need to see it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A variable that a load may assign.

    Attributes
    ----------
    name : str
        The variable's path in the model, as the library itself shows it.
    shape : tuple of int
        Its static shape.
    dtype : str
        TensorFlow's name of the dtype it stores (``"float32"``, ``"bfloat16"``), autocasting aside.
    variable : object
        What the library's own ``assign`` is called on.
    resource : object or None
        The plain ``tf.Variable`` behind it, if the raw assign op may be used on its handle (in a graph: if its
        assign op can be fed); ``None`` for distributed, sharded and wrapped variables, whose own ``assign`` knows
        more than one handle.
    device : str
        TensorFlow's full name of the device that the resource stands on; empty where there is no resource.
    graph : tf.Graph or None
        The TensorFlow 1 graph that the variable belongs to; ``None`` for an eager one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    variable: Any
    resource: Any | None
    device: str = ""
    graph: Any | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its value on the host, where sub-byte dtypes take a byte an element."""
        bits = int("".join(re.findall(r"^[a-z]+(\d+)", self.dtype)) or 8)
        return math.prod(self.shape) * max(bits // 8, 1)


@dataclass(frozen=True, slots=True, eq=False)
class LayerTargets:
    """The variables of one top-level layer in the order of legacy files.

    Attributes
    ----------
    name : str
        The layer's name.
    layer : object
        The layer.
    targets : tuple of Target
        Trainable variables, then the others.
    composite : bool
        Whether the layer has layers of its own, so that freezing one of them reorders ``targets``.
    """

    name: str
    layer: Any
    targets: tuple[Target, ...]
    composite: bool


@dataclass(frozen=True, slots=True)
class InnerLayer:
    """A layer at the bottom of a top-level one (or that itself), of a class that was stored otherwise once.

    Attributes
    ----------
    kind : str
        The name of its class.
    positions : tuple of int
        Where its weights stand among those of the top-level layer.
    data_format : str
        ``"channels_first"``, ``"channels_last"``, or empty.
    """

    kind: str
    positions: tuple[int, ...]
    data_format: str


# How a file is read: layer by layer, object by object, or tensor by tensor.
Layout = Literal["legacy", "keras3", "named"]

# How an object takes its own variables from a Keras 3 weights file. "listed": dataset i goes to variable i.
# "optimizer": the same, but a wrong count is a warning. "hook": only its own method knows. "none": it has none.
OwnKind = Literal["listed", "optimizer", "hook", "none"]


# What a walk does with a value: descend into it as an object, as a container, or pass it over.
NodeKind = Literal["saveable", "container", ""]


@dataclass(frozen=True, slots=True, eq=False)
class OwnVariables:
    """What one object of a model takes from its group of a Keras 3 weights file.

    Attributes
    ----------
    kind : {"listed", "optimizer", "hook", "none"}
        See ``OwnKind``.
    variables : tuple of Target
        In the order of the datasets ``0``, ``1``, ...
    expected : int
        The number of datasets that the library insists on; for a ``"hook"`` 0 where only its method knows.
    finalize : bool
        Whether ``finalize_state`` follows.
    """

    kind: OwnKind
    variables: tuple[Target, ...] = ()
    expected: int = 0
    finalize: bool = False


class ModelTargets(Protocol):
    """A model seen as targets: what each library's module in this room provides."""

    library: Literal["keras", "tf_keras"]
    model: Any
    # Whether the library's walk descends into containers inside containers: Keras since 3.15.
    nested_containers: bool

    def check_built(self, layout: Layout) -> None:
        """Raise what stock raises for a model without variables, before the file is opened."""

    def layers(self) -> list[LayerTargets]:
        """Return the top-level layers that have weights, in model order."""

    def thawed(self, layer: LayerTargets) -> tuple[Target, ...]:
        """Return the variables of a layer in the order they would have if nothing in it were frozen."""

    def parts(self, layer: LayerTargets) -> list[InnerLayer]:
        """Return the layers inside a top-level layer whose weights older versions stored otherwise."""

    def loader_shapes(
        self, layer: LayerTargets, shapes: Sequence[tuple[int, ...]], version: str, backend: str | None
    ) -> list[tuple[int, ...] | int]:
        """Return what the library's own loader makes of the weights of one layer.

        Parameters
        ----------
        layer : LayerTargets
            The layer.
        shapes : sequence of tuple of int
            The shapes in the file.
        version, backend : str
            What the file says of the Keras that saved it.

        Returns
        -------
        list of (tuple of int or int)
            For each result its shape, or the position in the file of the array that it is as it stands.

        Raises
        ------
        Mismatch
            The library refuses them; the text is its own.
        """

    def top_level(self, *, by_name: bool) -> tuple[Target, ...]:
        """Return the weights that belong to the model itself."""

    def finalizers(self) -> list[Callable[[], None]]:
        """Return what has to run once after the weights of a legacy file are in."""

    def own(self, obj: Any) -> OwnVariables:
        """Return what one object takes from its group."""

    def count_error(self, obj: Any, received: int) -> str:
        """Return the library's text for a group with the wrong number of datasets."""

    def shape_error(self, target: Target, received: tuple[int, ...]) -> str:
        """Return the text of the library's own ``assign`` for a value of the wrong shape."""

    def children(self, obj: Any) -> Iterator[tuple[str, Any]]:
        """Yield attribute name and value of all that the library's walk would look at."""

    def node_kind(self, obj: Any) -> NodeKind:
        """Tell what the library's walk does with a value."""

    def container_name(self, obj: Any) -> str:
        """Return the name that a container gives to an object: its class in snake case."""

    def identity(self) -> list[Any]:
        """Return all that a plan for this model depends on, to be compared object by object."""

    def all_targets(self, layout: Layout) -> Iterator[Target]:
        """Yield every variable that a file of this layout could fill, for the report."""
