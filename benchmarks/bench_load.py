"""pytest-benchmark cases: ``make bench``. Only rows of the same run can be compared with each other.

The cases of ``fastassign bench`` in smaller sizes, so that a change can be measured in a minute.
"""

from __future__ import annotations

import pytest

import fastassign
from fastassign.benchmarks.cases.compare import check_equal
from fastassign.benchmarks.cases.models import demo_model, tiny_layers
from fastassign.benchmarks.limits.roofline import Limit

CASES = {
    "large-v3": (demo_model, "model.weights.h5"),
    "large-legacy": (demo_model, "model.h5"),
    "tiny-v3": (lambda: tiny_layers(layers=250), "model.weights.h5"),
    "tiny-legacy": (lambda: tiny_layers(layers=250), "model.h5"),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    build, name = CASES[request.param]
    path = tmp_path_factory.mktemp("bench") / name
    model = build()
    (model.save_weights if name.endswith(".weights.h5") else model.save)(path)
    check_equal(model, path)
    return model, path


def bench_stock(benchmark, case):
    model, path = case
    benchmark(model.load_weights, path)


def bench_first_load(benchmark, case):
    model, path = case
    benchmark(fastassign.load_weights, model, path, options=fastassign.LoadOptions(index_cache=False))


def bench_index_cached(benchmark, case):
    model, path = case
    benchmark(fastassign.load_weights, model, path)


def bench_limit_fresh(benchmark, case):
    benchmark(Limit(case[1], threads=fastassign.LoadOptions().threads).fresh)


def bench_limit_warm(benchmark, case):
    benchmark(Limit(case[1], threads=fastassign.LoadOptions().threads).warm)
