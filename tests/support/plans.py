"""Plans from made-up records and variables: no file is read, and no TensorFlow is used."""

from pathlib import Path

from fastassign.catalog.memory import ArraysInMemory
from fastassign.plan import Plan
from fastassign.planning.schedule import make_schedule
from fastassign.runtime import process_runtime

ORIGIN = ArraysInMemory(Path("/somewhere/model.weights.h5"))


def plan_of(matching, options, *, atomic=False, **how):
    """Return the plan of a matching, whose records stand nowhere."""
    return Plan(
        origin=ORIGIN,
        matching=matching,
        options=options,
        schedule=make_schedule(matching, options, atomic=atomic, **how),
        session=None,
        runtime=process_runtime(),
        atomic=atomic,
    )
