"""``fastassign.assign``, eagerly: memory is bounded, and reports tell of it."""

import re

import numpy as np
import pytest

import fastassign as fa
from fastassign.assigning import execute
from support.pairs import COMPOSITE, VALUES, holds, read, values, variable


def test_budget_names_the_array():
    good, made = variable(), variable((1000,))
    with pytest.raises(fa.Budget, match="largest tensor") as caught:
        fa.assign([(good, values()), (made, np.ones(1000))], options=fa.LoadOptions(max_staging_bytes=1000))
    assert caught.value.tensor == "array 1"
    assert not read(good).any() and not read(made).any()
    least = int(re.search(r"max_staging_bytes=(\d+)", caught.value.hint)[1])
    assert 4000 <= least <= 4064
    with pytest.raises(fa.Budget):
        fa.assign([(made, np.ones(1000))], options=fa.LoadOptions(max_staging_bytes=least - 1))
    fa.assign([(good, values()), (made, np.ones(1000))], options=fa.LoadOptions(max_staging_bytes=least))
    assert holds(good, values()) and (read(made) == 1).all()


def test_budget_names_the_tensor_of_a_file(files):
    catalog, good, made = fa.inspect(files[0]), variable(), variable((300, 200))
    pairs = [(good, catalog["a/kernel"]), (made, catalog["a/large"])]
    with pytest.raises(fa.Budget) as caught:
        fa.assign(pairs, options=fa.LoadOptions(max_staging_bytes=100_000))
    assert caught.value.tensor == "a/large" and caught.value.file == str(files[0])
    assert not read(good).any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["float32", "float64", "mirrored"])
def test_staging_is_bounded(kind, threads, monkeypatch):
    limit, live, most = 20_000, [0], [0]

    class Watched(execute.EagerBatch):
        def __init__(self, batch):
            super().__init__(batch)
            live[0] += batch.staged_bytes
            most[0] = max(most[0], live[0])

        def assign(self, journal):
            super().assign(journal)
            live[0] -= self.batch.staged_bytes

    monkeypatch.setattr(execute, "EagerBatch", Watched)
    made = [COMPOSITE["mirrored"]() if kind == "mirrored" else variable((20, 20)) for _ in range(40)]
    dtype = "float32" if kind == "mirrored" else kind
    fa.assign(
        [(each, values(tuple(each.shape), dtype, seed)) for seed, each in enumerate(made)],
        options=fa.LoadOptions(threads=threads, max_staging_bytes=limit),
    )
    for seed, each in enumerate(made):
        assert holds(each, values(tuple(each.shape), dtype, seed).astype(np.float32))
    assert live == [0] and 0 < most[0] <= limit


def test_report():
    small, large, cast, empty = variable(name="s"), variable((300, 200)), variable(name="c"), variable((0, 4))
    spread = COMPOSITE["mirrored"]()
    pairs = [
        (small, values()),
        (large, values((300, 200))),
        (cast, values(dtype="float64")),
        (empty, values((0, 4))),
        (spread, values()),
    ]
    report = fa.assign(pairs)
    assert report.assigned == 5 and sum(report.routes.values()) == 5
    assert report.routes["owned"] == 1 and report.routes["assign"] == 1
    assert report.cast == ("c:0: float64 to float32",)
    assert report.nbytes == 3 * 48 + 240_000
    assert report.file == "memory" and not report.index_cached
    assert report.missing == report.unexpected == report.skipped == report.repaired == ()
    assert {"match", "plan", "execute", "total"} <= report.seconds.keys()
    assert report.seconds["total"] >= report.seconds["execute"] > 0
    assert "5 variables" in str(report)


@pytest.mark.parametrize("kind", ["array", "big_endian", "fortran", "strided", "tensor", "variable"])
def test_what_is_no_cast(kind):
    assert fa.assign([(variable(), VALUES[kind])]).cast == ()


@pytest.mark.parametrize(("value", "text"), [(7, "int64"), (0.5, "float64"), (True, "bool"), (np.int8(1), "int8")])
def test_what_is_a_cast(value, text):
    assert fa.assign([(variable((), name="v"), value)]).cast == (f"v:0: {text} to float32",)
