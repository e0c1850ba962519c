"""The benchmark code itself: that it measures what it says, and fails when the loaders disagree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tf_keras

import fastassign
from fastassign.benchmarks import suite
from fastassign.benchmarks.cases import compare as comparing
from fastassign.benchmarks.cases import graph, swap
from fastassign.benchmarks.cases.models import demo_model, gpt_like, tiny_layers
from fastassign.benchmarks.limits.peak import peak_extra_bytes
from fastassign.benchmarks.limits.roofline import Limit


def figures_of(result):
    """Return every number in a nested dict or list."""
    if isinstance(result, dict):
        return [n for value in result.values() for n in figures_of(value)]
    if isinstance(result, (list, tuple)):
        return [n for value in result for n in figures_of(value)]
    return [result] if isinstance(result, float) else []


@pytest.fixture
def small(tmp_path):
    model = tiny_layers(layers=3)
    path = tmp_path / "small.weights.h5"
    model.save_weights(path)
    return model, path


def test_compare_gives_a_row_for_the_head(small):
    result = comparing.compare("small", *small, repeats=1)
    assert len(result.row) == len(comparing.HEAD)
    assert result.tensors == 6
    assert result.nbytes == 3 * 4 * (32 * 32 + 32)
    assert min(result.stock, result.first, result.cached, result.fresh_limit, result.warm_limit) > 0
    assert result.to_dict()["stock_over_cached"] == result.stock / result.cached


def test_compare_notices_a_wrong_value(small, monkeypatch):
    real = fastassign.load_weights

    def wrong(model, path, **keywords):
        report = real(model, path, **keywords)
        model.weights[-1].assign_add(model.weights[-1] + 1)
        return report

    monkeypatch.setattr(fastassign, "load_weights", wrong)
    with pytest.raises(AssertionError, match="differs from what stock Keras loads"):
        comparing.check_equal(*small)


def test_the_limit_reads_the_whole_file(small):
    limit = Limit(small[1], threads=3)
    assert limit.warm() > 0
    assert limit._touched.tobytes() == Path(small[1]).read_bytes()


@pytest.mark.slow
def test_the_suite_is_json_and_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setitem(suite.MODELS, "T", lambda: tiny_layers(layers=2))
    result = suite.run_suite(tmp_path, cases=["T"], repeats=1)
    data = json.loads(json.dumps(result.to_dict()))
    assert [row["case"] for row in data["comparisons"]] == ["T .weights.h5", "T .h5"]
    assert data["page_cache"] == "warm"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_graph_cases_give_rows_for_the_head(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "_FILE_LAYERS", 2)
    tf_keras.layers.Dense(2)  # automatic names go on counting
    for found in (graph.compare_assign(3, 400, repeats=2), graph.compare_load(tmp_path, repeats=1)):
        assert len(found.row) == len(graph.HEAD)
        assert min(figures_of(found.to_dict())) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_swaps_and_calls_give_rows_for_the_head(tmp_path):
    model = gpt_like(vocabulary=30, width=24, blocks=1, context=16)
    paths = suite._two_files(model, tmp_path, "small", ".weights.h5")
    assert paths[0].read_bytes() != paths[1].read_bytes()
    swaps = swap.compare_swaps("small", model, paths, repeats=2)
    calls = swap.serve("small", model, paths, tokens=4, swaps=2)
    assert len(swaps.row) == len(swap.SWAP_HEAD)
    assert {len(row) for row in calls.rows} == {len(swap.SERVE_HEAD)}
    assert min(figures_of([swaps.to_dict(), calls.to_dict()])) > 0


def test_an_unknown_case_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown case 'X'"):
        suite.run_suite(tmp_path, cases=["X"], repeats=1)


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_child(tmp_path):
    path = tmp_path / "demo.weights.h5"
    demo_model().save_weights(path)
    figures = {
        loader: peak_extra_bytes("fastassign.benchmarks.cases.models:demo_model", path, loader)
        for loader in ("stock", "fastassign")
    }
    largest = 16_000 * 576 * 4
    assert {row["largest"] for row in figures.values()} == {largest}
    assert figures["stock"]["planned"] == 0
    assert figures["stock"]["extra"] > largest
    assert figures["fastassign"]["planned"] >= largest
