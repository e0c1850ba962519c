"""A variable of a model, and a model as a set of variables: the form in which the later rooms see them."""

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
        TensorFlow's name of the dtype that it stores (``"float32"``, ``"bfloat16"``), not the one it is autocast to.
    variable : object
        The object whose ``assign`` is the library's own.
    resource : object or None
        The plain ``tf.Variable`` behind it, if the raw assign op may be used on its handle (in a graph: if its
        assign op can be fed); ``None`` for distributed, sharded and wrapped variables, whose own ``assign`` handles
        more than one resource.
    device : str
        TensorFlow's full name of the device that holds the resource; empty if there is no resource.
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
        """Bytes of its value on the host, where each element of a sub-byte dtype takes one byte."""
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
    """An innermost layer of a top-level one, or that layer itself, of a class that was once stored in another form.

    Attributes
    ----------
    kind : str
        The name of its class.
    positions : tuple of int
        The positions of its weights among those of the top-level layer.
    data_format : str
        ``"channels_first"``, ``"channels_last"``, or empty.
    """

    kind: str
    positions: tuple[int, ...]
    data_format: str


# How a file is read: layer by layer, object by object, or tensor by tensor.
Layout = Literal["legacy", "keras3", "named"]

# How an object takes its own variables from a Keras 3 weights file. "listed": dataset i goes to variable i.
# "optimizer": the same, but a wrong count is a warning. "hook": only its own method knows how. "none": it takes none.
OwnKind = Literal["listed", "optimizer", "hook", "none"]


# How a walk treats a value: it enters it as an object or as a container, or ignores it.
NodeKind = Literal["saveable", "container", ""]


@dataclass(frozen=True, slots=True, eq=False)
class OwnVariables:
    """The variables that one object of a model loads from its group of a Keras 3 weights file.

    Attributes
    ----------
    kind : {"listed", "optimizer", "hook", "none"}
        See ``OwnKind``.
    variables : tuple of Target
        In the order of the datasets ``0``, ``1``, ...
    expected : int
        The number of datasets that the library requires; for a ``"hook"`` 0 if only its method knows.
    finalize : bool
        Whether ``finalize_state`` follows.
    """

    kind: OwnKind
    variables: tuple[Target, ...] = ()
    expected: int = 0
    finalize: bool = False


class ModelTargets(Protocol):
    """A model as targets; each library has a module with an implementation in this room."""

    library: Literal["keras", "tf_keras"]
    model: Any
    # Whether the library's walk enters containers inside containers, as Keras does since 3.15.
    nested_containers: bool

    def check_built(self, layout: Layout) -> None:
        """Raise stock's error for a model without variables, before the file is opened."""

    def layers(self) -> list[LayerTargets]:
        """Return the top-level layers that have weights, in model order."""

    def thawed(self, layer: LayerTargets) -> tuple[Target, ...]:
        """Return the variables of a layer in the order they would have if nothing in it were frozen."""

    def parts(self, layer: LayerTargets) -> list[InnerLayer]:
        """Return the layers inside a top-level layer whose weights older versions stored in another form."""

    def loader_shapes(
        self, layer: LayerTargets, shapes: Sequence[tuple[int, ...]], version: str, backend: str | None
    ) -> list[tuple[int, ...] | int]:
        """Return the results of the library's own conversion of the weights of one layer.

        Parameters
        ----------
        layer : LayerTargets
            The layer.
        shapes : sequence of tuple of int
            The shapes in the file.
        version, backend : str
            The version and backend of the Keras that saved the file, if the file names them.

        Returns
        -------
        list of (tuple of int or int)
            For each result its shape, or the position in the file of the array that is returned as it is.

        Raises
        ------
        Mismatch
            The library refuses them; the text is its own.
        """

    def top_level(self, *, by_name: bool) -> tuple[Target, ...]:
        """Return the weights that belong to the model itself."""

    def finalizers(self) -> list[Callable[[], None]]:
        """Return the functions to call once when the weights of a legacy file are loaded."""

    def own(self, obj: Any) -> OwnVariables:
        """Return the variables that one object loads from its group."""

    def count_error(self, obj: Any, received: int) -> str:
        """Return the library's text for a group with the wrong number of datasets."""

    def shape_error(self, target: Target, received: tuple[int, ...]) -> str:
        """Return the text of the library's own ``assign`` for a value of the wrong shape."""

    def children(self, obj: Any) -> Iterator[tuple[str, Any]]:
        """Yield name and value of every attribute that the library's walk would look at."""

    def node_kind(self, obj: Any) -> NodeKind:
        """Tell how the library's walk treats a value."""

    def container_name(self, obj: Any) -> str:
        """Return the name that a container gives to an object: its class in snake case."""

    def identity(self) -> list[Any]:
        """Return everything that a plan for this model depends on, to be compared object by object."""

    def all_targets(self, layout: Layout) -> Iterator[Target]:
        """Yield every variable that a file of this layout could fill, for the report."""
