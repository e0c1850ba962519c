"""The cost of each way to give small variables on a device their values, and the choice of the shortest.

Many values go to the device in one slab, in one copy. There are three ways from there:

``"split"``
    Eager ops cut the slab up, and the pieces stay in its memory. It takes one op for all variables of a batch, two or
    three more for each run of equal shapes, and one assignment for each variable.
``"function"``
    One function of TensorFlow's runtime does all of that: the shortest way by far, once it is made.
``"scatter"``
    A kernel of ours copies each value to memory of its own, which has to be allocated and addressed first.

The figures are seconds, measured with CPU tensors on 2 cores (best of 30 and of 8 turns, with other work running).
Python and TensorFlow's dispatch should take as long for the same ops on a GPU: 12 microseconds for an assignment, 24
for an allocation and 3 for its address; 3 to 6 a variable for a call of a function. The time to make a function is from
``function.py``, the time of an op from ``docs/internals/tensorflow.md``. **None was measured on a card**: ``fastassign
bench --device gpu --case costs`` does that. The first launch of a kernel in a process is left out: kernels are only
weighed where values are cast, which needs them anyway.
"""

from __future__ import annotations

from typing import Literal

Cut = Literal["split", "function", "scatter"]

# An eager op: Python, dispatch, kernel.
OP = 15e-6
# The raw assignment of a tensor that exists.
ASSIGN = 12e-6
# Allocating a tensor, and asking for its address.
ALLOCATE = 27e-6
# Making a function (once) and calling it, for each variable.
FUNCTION_MAKE = 300e-6
FUNCTION_CALL = 4e-6
# Ops for a run of equal shapes.
RUN_OPS = 3
# Loads that share a function, if the load will be repeated: a guess.
REPETITIONS = 20


def seconds_of(cut: Cut, *, variables: int, runs: int, repeated: bool) -> float:
    """Return the seconds that a way takes for one batch, in one load.

    Parameters
    ----------
    cut : {"split", "function", "scatter"}
        The way.
    variables : int
        Number of variables in the batch.
    runs : int
        Number of runs of equal shapes in the slab.
    repeated : bool
        Whether the load will be repeated.
    """
    if cut == "split":
        return OP + RUN_OPS * runs * OP + variables * ASSIGN
    if cut == "function":
        return OP + variables * (FUNCTION_CALL + FUNCTION_MAKE / (REPETITIONS if repeated else 1))
    return OP + variables * (ALLOCATE + ASSIGN)


def shortest(*, variables: int, runs: int, repeated: bool, scatters: bool) -> Cut:
    """Return the way that takes the least time.

    Parameters
    ----------
    variables, runs, repeated
        As for ``seconds_of``.
    scatters : bool
        Whether kernels of ours run on the device.
    """
    ways: tuple[Cut, ...] = ("split", "function", "scatter") if scatters else ("split", "function")
    return min(ways, key=lambda cut: seconds_of(cut, variables=variables, runs=runs, repeated=repeated))
