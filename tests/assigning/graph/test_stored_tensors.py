"""Tensors of files, stored in every way."""

import h5py
import numpy as np
import pytest
import tensorflow as tf

import fastassign as fa
from support import graph_modes
from support.graph_modes import variable_of
from support.graphs import BOTH


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Files with tensors stored in every way, and what they are as single precision (or as they are)."""
    rng = np.random.default_rng(0)
    plain, gzip = rng.normal(size=(4, 5)), rng.normal(size=(40, 30)).astype(np.float32)
    wanted = {
        "single": plain.astype(np.float32),
        "double": plain.astype(np.float32),
        "big_endian": plain.astype(np.float32),
        "gzip": gzip,
        "gzip_double": gzip,
        "scalar": np.float32(0.1),
        "empty": np.zeros((0, 3), np.float32),
        "bfloat16": plain.astype(tf.bfloat16.as_numpy_dtype),
        "flags": plain > 0,
    }
    paths = [tmp_path_factory.mktemp("stored") / f"{i}.h5" for i in range(2)]
    for path in paths:
        with h5py.File(path, "w") as file:
            for name in ("single", "scalar", "empty", "flags"):
                file[name] = wanted[name]
            file["double"] = plain
            file["big_endian"] = plain.astype(">f4")
            for name, dtype in (("gzip", "f4"), ("gzip_double", "f8")):
                file.create_dataset(name, data=gzip.astype(dtype), chunks=(10, 30), compression="gzip")
            file["bfloat16"] = wanted["bfloat16"].view("V2")
    return paths, wanted


@BOTH
@pytest.mark.parametrize("threads", [1, 3])
def test_tensors_stored_in_every_way(threads, use_resource, stored, graph, session):
    paths, wanted = stored
    made = {
        name: variable_of(name, array.shape, tf.as_dtype(array.dtype), use_resource) for name, array in wanted.items()
    }
    report = fa.load_weights(made, paths[0], session=session, options=fa.LoadOptions(threads=threads))
    assert report.routes == {"feed": len(wanted)}
    assert len(report.cast) == 3  # from double precision twice, and from another byte order
    found = session.run([variable.value() for variable in made.values()])
    assert graph_modes.same(found, [np.asarray(array) for array in wanted.values()])


@BOTH
def test_assign_arrays_and_tensors_of_files(use_resource, stored, graph, session):
    paths, wanted = stored
    one, two = map(fa.inspect, paths)
    values = {"a": one["single"], "b": two["double"], "c": wanted["single"] + 1, "d": two["gzip"], "e": one["empty"]}
    arrays = [wanted["single"], wanted["double"], wanted["single"] + 1, wanted["gzip"], wanted["empty"]]
    made = [variable_of(name, array.shape, "float32", use_resource) for name, array in zip(values, arrays, strict=True)]
    report = fa.assign(zip(made, values.values(), strict=True), session)
    assert report.assigned == 5 and report.routes == {"feed": 5}
    assert graph_modes.same(session.run([variable.value() for variable in made]), arrays)


def test_more_than_is_fed_at_once(graph, session, tmp_path):
    made = [variable_of(f"v{i}", (4 << 20,), "float32", use_resource=True) for i in range(4)]
    arrays = [np.full(4 << 20, i, np.float32) for i in range(4)]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for i in range(4):
            file[f"v{i}"] = arrays[i] + 1
    plan = fa.plan(made, tmp_path / "x.h5", session=session)
    assert len(plan.schedule.batches) >= 2
    plan.execute()
    assert session.run([tf.reduce_min(each) for each in made]) == [1, 2, 3, 4]
    fa.assign(zip(made, arrays, strict=True))
    assert session.run([tf.reduce_max(each) for each in made]) == [0, 1, 2, 3]
    fa.release_buffers()
