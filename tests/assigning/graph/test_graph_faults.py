"""What can fail while a file is read for a graph."""

import os

import numpy as np
import pytest
import tf_keras

import fastassign as fa
from support import attacks, differential, faults
from support.graphs import holds, tiny_plan
from support.running import with_source


def assert_state(session, variables, named, old, new):
    """Those that were named have new values, the others their old ones."""
    assert set(named) <= {variable.name for variable in variables} and len(set(named)) == len(named)
    wanted = [b if variable.name in named else a for variable, a, b in zip(variables, old, new, strict=True)]
    assert holds(session, variables, wanted)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.6])
@pytest.mark.parametrize("fault", ["fails_at", "ends_at"])
def test_storage_fails(fault, share, threads, case, session):
    path, variables, old, new = case
    plan = tiny_plan(variables, path, threads=threads)
    assert len(plan.schedule.batches) > 2
    extents = sorted(e.offset for r in fa.inspect(path).contents.records.values() for e in r.extents)
    place = extents[int(share * len(extents))]
    with pytest.raises(OSError) as caught:
        with_source(plan, getattr(faults, fault)(place)).execute()
    assert_state(session, variables, caught.value.assigned, old, new)


def test_storage_fails_at_the_end(case, session):
    """By then others are assigned, in the order of the file."""
    path, variables, old, new = case
    plan = tiny_plan(variables, path, threads=1)
    last = plan.schedule.batches[-1].placements[-1].assignment.record.extents[-1]
    with pytest.raises(fa.Truncated) as caught:
        with_source(plan, faults.ends_at(last.offset + last.nbytes - 1)).execute()
    assert 0 < len(caught.value.assigned) < len(variables)
    assert_state(session, variables, caught.value.assigned, old, new)


def test_bad_but_whole_storage(case, session):
    path, variables, _, new = case
    plan = tiny_plan(variables, path)
    with_source(plan, faults.random_shares(1)).execute()
    assert holds(session, variables, new)


def test_file_cut_short(case, session):
    path, variables, old, _ = case
    plan = tiny_plan(variables, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises((fa.Changed, fa.Truncated)):
        plan.execute()
    assert holds(session, variables, old)


def test_file_changes_while_it_is_read(case, session):
    path, variables, old, new = case
    plan = tiny_plan(variables, path, threads=1)

    def touch(number, offset, wanted):
        if number == 2:
            os.utime(path, ns=(1, 1))

    with pytest.raises(fa.Changed) as caught:
        with_source(plan, faults.faulty(before=touch)).execute()
    assert len(caught.value.assigned) < len(variables)
    assert_state(session, variables, caught.value.assigned, old, new)


def test_atomic_load_that_storage_ends(case, session):
    path, variables, old, _ = case
    plan = fa.plan(variables, path, atomic=True)
    last = plan.schedule.batches[-1].placements[-1].assignment.record.extents[-1]
    with pytest.raises(fa.Truncated) as caught:
        with_source(plan, faults.ends_at(last.offset)).execute()
    assert caught.value.assigned == ()
    assert holds(session, variables, old)


@pytest.mark.parametrize("atomic", [False, True])
def test_callback_that_raises_after_the_first_assignment(atomic, case, session):
    """What the error says of the state is true; what a session was fed with is not taken back, even if atomic."""
    path, variables, old, new = case

    def progress(event):
        if event.done_variables:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough") as caught:
        fa.load_weights(variables, path, atomic=atomic, progress=progress)
    assert caught.value.assigned
    assert_state(session, variables, caught.value.assigned, old, new)


def test_atomic_load_of_a_file_that_changes_when_all_is_read(case, session):
    path, variables, _, new = case

    def progress(event):
        if event.done_variables == event.total_variables:
            os.utime(path, ns=(1, 1))

    fa.load_weights(variables, path, atomic=True, progress=progress)
    assert holds(session, variables, new)


@pytest.mark.parametrize("atomic", [False, True])
def test_conversions_of_which_one_fails(atomic, tmp_path, session):
    """A file of two recurrent layers in CuDNN's layout, the second damaged."""
    model = tf_keras.Sequential([
        tf_keras.Input((3, 4)),
        tf_keras.layers.LSTM(2, return_sequences=True, name="one"),
        tf_keras.layers.LSTM(2, name="two"),
    ])  # fmt: skip
    old = [np.full(weight.shape, 0.5, np.float32) for weight in model.weights]
    fa.assign(zip(model.weights, old, strict=True))
    path = tmp_path / "x.h5"
    rng = np.random.default_rng(0)
    layers = [
        (name, [(f"{name}/w{i}:0", rng.normal(size=shape).astype(np.float32)) for i, shape in enumerate(shapes)])
        for name, shapes in (("one", [(4, 8), (2, 8), (16,)]), ("two", [(2, 8), (2, 8), (16,)]))
    ]
    differential.write_legacy(path, layers, version="2.2.0", backend="tensorflow")
    attacks.settle(path)
    fa.load_weights(model, path)
    new = session.run([weight.value() for weight in model.weights])
    fa.assign(zip(model.weights, old, strict=True))
    plan = fa.plan(model, path, atomic=atomic)
    record = list(plan.matching.conversions.values())[3].recipe.records[0]
    with pytest.raises(OSError) as caught:
        with_source(plan, faults.fails_at(record.extents[0].offset)).execute()
    # Each variable is assigned when what it is made of was read.
    assert caught.value.assigned == (() if atomic else tuple(weight.name for weight in model.weights[:3]))
    assert_state(session, model.weights, caught.value.assigned, old, new)
