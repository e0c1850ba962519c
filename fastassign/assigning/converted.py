"""Conversions: the arrays of one variable at a time are read, its value is computed from them and assigned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from fastassign.assigning import graph
from fastassign.assigning.hooks import ReadArray
from fastassign.assigning.host import memory
from fastassign.assigning.journal import Journal
from fastassign.matching.assignment import Conversion
from fastassign.streaming.buffers import ArenaPool
from fastassign.targets.variables import numpy_dtype_of


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """A value that waits to be assigned; from then on its memory belongs to the variable."""

    conversion: Conversion
    value: Any

    def assign(self, journal: Journal, session: Any) -> None:
        """Make it the variable's value.

        Parameters
        ----------
        journal : Journal
            The journal of the execution, which gets an entry.
        session : tf.compat.v1.Session or None
            The session that runs the assignment, if the variable belongs to a graph.
        """
        conversion, target = self.conversion, self.conversion.target
        journal.remember(target)
        # The variable is named before it changes: an interrupt in between names one too many, never one too few.
        journal.assigned.append(target.name)
        if session is not None:
            # If the run fails, the name stays: nothing tells whether the run reached the variable.
            graph.feed(session, [target], [self.value])
        else:
            try:
                self._assign_eagerly()
            except Exception:
                journal.assigned.pop()
                raise
        for record, fit in zip(conversion.recipe.records, conversion.fits, strict=True):
            if fit == "cast":
                journal.cast.append(f"{target.name}: {record.dtype} to {target.dtype}")
                break
        journal.converted.append(str(conversion))
        journal.enter("convert", (target.name,), conversion.recipe.nbytes)

    def _assign_eagerly(self) -> None:
        target = self.conversion.target
        if target.resource is None:
            target.variable.assign(self.value)
        elif target.nbytes:
            with tf.device(target.device):
                memory.assign(target.resource, self.value, target.nbytes)


def convert(conversion: Conversion, read: ReadArray, pool: ArenaPool) -> Converted:
    """Read the arrays that a value is computed from, and compute it.

    Parameters
    ----------
    conversion : Conversion
        The recipe, and the variable.
    read : callable
        Reads one array.
    pool : ArenaPool
        The memory for values of variables in TensorFlow 1 graphs.
    """
    recipe, target = conversion.recipe, conversion.target
    dtype = numpy_dtype_of(target.dtype)
    arrays = [
        read(record).view(dtype) if fit == "reinterpret" else read(record)
        for record, fit in zip(recipe.records, conversion.fits, strict=True)
    ]
    value, out = _allocate(conversion, pool)
    recipe.fill(out, arrays)
    return Converted(conversion, value)


def _allocate(conversion: Conversion, pool: ArenaPool) -> tuple[Any, np.ndarray[Any, Any]]:
    target = conversion.target
    if not target.nbytes or (target.graph is None and target.resource is None):
        array = np.empty(target.shape, numpy_dtype_of(target.dtype))
        return array, array
    if target.graph is not None:
        view = memory.Arena(target.nbytes, pool).view(0, target.shape, target.dtype)
        return view, view
    with tf.device("CPU:0"):
        return memory.empty(target.shape, target.dtype)
