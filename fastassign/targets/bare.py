"""Variables without a model around them: a mapping from names, or a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastassign.errors import Mismatch, Unsupported
from fastassign.targets.target import Target
from fastassign.targets.variables import any_target, may_use_handles, numpy_dtype_of, static_shape


class BareTargets:
    """Variables by name.

    Parameters
    ----------
    variables : mapping of str to variable, or sequence of variables
        Variables of Keras 3, tf_keras or TensorFlow. In a sequence each goes by its own name.

    Raises
    ------
    Mismatch
        Two variables of a sequence have the same name.
    TypeError
        Something is not a variable, or not a name.
    """

    library: Literal["tensorflow"] = "tensorflow"

    def __init__(self, variables: Mapping[str, Any] | Sequence[Any]) -> None:
        self.model = variables
        self.named: dict[str, Any] = {}
        for variable in variables.values() if isinstance(variables, Mapping) else variables:
            if not hasattr(variable, "assign") or not hasattr(variable, "dtype"):
                raise TypeError(f"{variable!r} is not a variable of keras, tf_keras or tensorflow")
        if isinstance(variables, Mapping):
            for name in variables:
                if not isinstance(name, str):
                    raise TypeError(f"names of variables in the file must be strings, not {name!r}")
            self.named.update(variables)
            return
        for variable in variables:
            name = str(getattr(variable, "path", None) or getattr(variable, "name", variable))
            if name in self.named:
                raise Mismatch(
                    f"two of the variables have the name {name!r}",
                    variable=name,
                    hint="pass a mapping that gives each a name of its own: {name in the file: variable, ...}",
                )
            self.named[name] = variable

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Return the declared shape of a variable; ``None`` for open dimensions, or for an open rank."""
        return static_shape(self.named[name])

    def identity(self) -> list[Any]:
        """Return names and variables, to be compared object by object."""
        return [may_use_handles(), *self.named, *self.named.values()]

    def target(self, name: str, shape: tuple[int, ...]) -> Target:
        """Return the target for a value of a shape that fits."""
        target = any_target(self.named[name], shape, handles=may_use_handles())
        check_numeric(target)
        return target


def check_numeric(target: Target) -> None:
    """Raise an error for a variable whose values numpy keeps as objects, such as strings.

    Raises
    ------
    Unsupported
        The variable has such values.
    """
    if numpy_dtype_of(target.dtype).hasobject:
        raise Unsupported(
            f"{target.name} has dtype {target.dtype}, which fastassign does not load", variable=target.name
        )
