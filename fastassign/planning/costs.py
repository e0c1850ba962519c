"""What the ways to give small variables on a device their values take, and which is the shortest.

A value comes to the device in a slab that many share, in one copy. There are three ways from there:

``"split"``
    Eager ops cut the slab up; the pieces are its memory. One op for all variables of a batch, two or three more for
    each run of equal shapes, one assignment a variable.
``"function"``
    One function of TensorFlow's runtime does all of that: the shortest way by far, once it is made.
``"scatter"``
    A kernel of ours copies each value to memory of its own, which has to be allocated and addressed first.

The figures are seconds. They come from CPU tensors and 2 cores (best of 30 and of 8 turns, other work beside); those
ops take Python and TensorFlow's dispatch as long as a GPU's should: 12 microseconds for an assignment, 24 for an
allocation and 3 for its address; 3 to 6 a variable for a call of a function. What it takes to make one is from
``function.py``, an op's from the notes on TensorFlow. **None was measured on a card**: ``fastassign bench --device
gpu --case costs`` does. What the first launch of a kernel takes in a process is left out; kernels are only weighed
where values are cast, and are needed anyway.
"""

from __future__ import annotations

from typing import Literal

Cut = Literal["split", "function", "scatter"]

# An eager op: Python, dispatch, kernel.
OP = 15e-6
# The raw assignment of a tensor that is there.
ASSIGN = 12e-6
# Allocating a tensor, and asking for its address.
ALLOCATE = 27e-6
# For each variable, to make a function (once), and to call it.
FUNCTION_MAKE = 300e-6
FUNCTION_CALL = 4e-6
# Ops of a run of equal shapes.
RUN_OPS = 3
# Loads that share a function, where a load says that it comes again: a guess.
REPETITIONS = 20


def seconds_of(cut: Cut, *, variables: int, runs: int, repeated: bool) -> float:
    """Return what a way takes for one batch, in one load.

    Parameters
    ----------
    cut : {"split", "function", "scatter"}
        The way.
    variables : int
        Variables in the batch.
    runs : int
        Runs of variables of one shape, as they stand one after the other in the slab.
    repeated : bool
        Whether the load comes again and again.
    """
    if cut == "split":
        return OP + RUN_OPS * runs * OP + variables * ASSIGN
    if cut == "function":
        return OP + variables * (FUNCTION_CALL + FUNCTION_MAKE / (REPETITIONS if repeated else 1))
    return OP + variables * (ALLOCATE + ASSIGN)


def shortest(*, variables: int, runs: int, repeated: bool, scatters: bool) -> Cut:
    """Return the way that takes least.

    Parameters
    ----------
    variables, runs, repeated
        As for ``seconds_of``.
    scatters : bool
        Whether kernels of ours run on the device.
    """
    ways: tuple[Cut, ...] = ("split", "function", "scatter") if scatters else ("split", "function")
    return min(ways, key=lambda cut: seconds_of(cut, variables=variables, runs=runs, repeated=repeated))
