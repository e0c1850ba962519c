"""What is told of loads into graphs: reports, plans, progress, what was skipped."""

import numpy as np
import tf_keras

import fastassign as fa
from support import graph_modes, models
from support.graphs import TINY, count_ops, holds, tiny_plan


def test_progress_and_report(files, graph, session):
    model = graph_modes.build("small")
    events = []
    report = fa.load_weights(model, files / "small.whole.h5", progress=events.append)
    total = sum(4 * int(np.prod(weight.shape)) for weight in model.weights)
    assert report.nbytes == total and report.assigned == len(model.weights) and report.routes == {"feed": 4}
    assert report.missing == report.unexpected == report.cast == report.skipped == ()
    assert {"index", "match", "plan", "execute", "assign", "total"} <= report.seconds.keys()
    assert (events[-1].done_bytes, events[-1].done_variables) == (total, len(model.weights))


def test_plan_says_feed_and_changes_nothing(files, graph, session):
    model = graph_modes.build("small")
    count = count_ops(graph)
    plan = fa.plan(model, files / "small.h5")
    assert {row["route"] for row in plan.to_dict()["tensors"]} == {"feed"}
    assert count_ops(graph) == count
    assert plan.execute().assigned == len(model.weights)
    assert holds(session, model, graph_modes.saved(files, "small"))


def test_budget_bounds_what_is_staged(case, session):
    path, variables, _, new = case
    plan = tiny_plan(variables, path)
    assert plan.staging_bytes <= TINY["max_staging_bytes"]
    assert len(plan.schedule.batches) > 2
    plan.execute()
    assert holds(session, variables, new)


def test_skipped_mismatch(files, graph, session):
    model = models.chain(tf_keras, 5, 7, names=("first", "second"))
    old = [np.full(weight.shape, 0.5, np.float32) for weight in model.weights]
    fa.assign(zip(model.weights, old, strict=True))
    with graph_modes.warnings.catch_warnings():
        graph_modes.warnings.simplefilter("ignore")
        report = fa.load_weights(model, files / "functional.weights.h5", skip_mismatch=True)
    assert report.skipped
    found = session.run([weight.value() for weight in model.weights])
    assert not graph_modes.same(found[:2], old[:2]) and graph_modes.same(found[2:], old[2:])
