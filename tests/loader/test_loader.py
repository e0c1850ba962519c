"""Repeated loads into one model: the plan of the load before serves the next one, and is never stale."""

import asyncio
import concurrent.futures
import gc
import itertools
import json
import os
import struct
import subprocess
import sys
import threading
import warnings
import weakref
import zipfile
from contextlib import contextmanager

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.eager import context
from tf_keras.src import backend

import fastassign as fa
from fastassign.assigning.open_batch import OpenBatch
from fastassign.errors import ReadFailed
from fastassign.loader.loader import LoadFuture
from fastassign.plan import Plan
from fastassign.planning import batches
from support import attacks, faults, models
from support import differential as d
from support.options import load_options
from support.running import set_runtime

# No wait in here lasts, unless something is wrong.
LONG = 30

MADE, KEPT, AGAIN = "made", "kept", "made again: "
OTHER_STRUCTURE = AGAIN + "the structure of the file differs from that of the file before"
OTHER_MODEL = AGAIN + "the model's layers, variables, trainable flags or scopes have changed"

TOGETHER = fa.LoadOptions(swap="together")
BOTH = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])


def values(model):
    return [row[3] for row in d.snapshot(model)]


def compare(loader, model, stock, path, *, load=None, **arguments):
    """Load a file by stock and by a loader; every variable is the same afterwards. Return the report."""
    with d.quiet():
        d.perturb(stock, 0.25)
        d.perturb(model, 0.25)
        stock.load_weights(str(path), **arguments)
        report = (load or loader.load)(path)
    assert_same(model, stock)
    return report


def assert_same(model, stock):
    """Assert that every variable is bit for bit the same, whatever it is called."""
    rows = zip(d.snapshot(model), d.snapshot(stock), strict=True)
    assert [row[0] for row, expected in rows if row[1:] != expected[1:]] == []


def in_background(loader):
    return lambda path: loader.load_async(path).result(LONG)


def dense(k=keras):
    return models.chain(k, 5, 5, 3, names=["a", "b", "c"])


def constant(path, model, value):
    """Write a file in which every value is the same; the model keeps its own."""
    twin = keras.models.clone_model(model)
    d.perturb(twin, value)
    twin.save_weights(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of `dense`, by their seeds, and one that does not fit."""
    folder = tmp_path_factory.mktemp("files")
    found = {seed: d.saved(dense, folder / f"{seed}.weights.h5", seed) for seed in (1, 2)}
    found["bad"] = d.saved(lambda: models.chain(keras, 5, 4, 3), folder / "bad.weights.h5")
    attacks.settle(*found.values())
    return found


@pytest.fixture(scope="module")
def contents(files):
    """What is in the two files."""
    stock = d.fresh(dense)
    found = {}
    for seed in (1, 2):
        stock.load_weights(files[seed])
        found[seed] = values(stock)
    return found


@pytest.fixture
def model():
    return d.perturb(d.fresh(dense), 0.5)


@pytest.fixture
def copy(files, tmp_path):
    """A copy of the first file, which tests may spoil."""
    path = tmp_path / "copy.weights.h5"
    path.write_bytes(files[1].read_bytes())
    return path


class Brake:
    """Holds up the reads of tensors, from a certain read on, until it is let go."""

    def __init__(self):
        self.reached, self.may_go = threading.Event(), threading.Event()
        self.reads = self.first = 0

    def hold(self, number, offset, wanted):
        self.reads += 1
        if self.reads > self.first:
            self.reached.set()
            assert self.may_go.wait(LONG)


@pytest.fixture
def brake(monkeypatch):
    found = Brake()
    set_runtime(monkeypatch, make_source=faults.faulty(before=found.hold))
    yield found
    found.may_go.set()


class Lock:
    """A lock that tells when it is asked for, and that may be held up while it is let go."""

    def __init__(self):
        self.inner, self.asked = threading.Lock(), threading.Event()
        self.leaving, self.may_leave = threading.Event(), threading.Event()
        self.may_leave.set()

    def __enter__(self):
        self.asked.set()
        assert self.inner.acquire(timeout=LONG)

    def __exit__(self, *_):
        self.leaving.set()
        assert self.may_leave.wait(LONG)
        self.inner.release()


def together(model, lock, **how):
    return fa.Loader(model, lock=lock, options=load_options(swap="together", **how))


@contextmanager
def running(work):
    """Run something in a thread that has ended afterwards; what it raised is raised here."""
    errors = []

    def call():
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(LONG)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastassign")]


# The same structure.


def compress(path):
    """Write an archive anew, with its members compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def chunk(path):
    """Store every matrix in compressed chunks, which h5py decodes."""
    with h5py.File(path, "r+") as file:
        matrices = []
        file.visititems(lambda key, item: matrices.append(key) if getattr(item, "ndim", 0) > 1 else None)
        for key in matrices:
            array = file[key][()]
            del file[key]
            file.create_dataset(key, data=array, chunks=True, compression="gzip", shuffle=True)
    return path


KINDS = {
    "weights": ("m.weights.h5", None, [MADE, KEPT, KEPT, KEPT]),
    "legacy": ("m.h5", None, [MADE, KEPT, KEPT, KEPT]),
    "whole": ("m.whole.h5", None, [MADE, KEPT, KEPT, KEPT]),
    "archive": ("m.keras", None, [MADE, KEPT, KEPT, KEPT]),
    "compressed": ("m.keras", compress, [MADE, *[AGAIN + "the weights of the file before were compressed"] * 3]),
    "chunked": ("m.weights.h5", chunk, [MADE, KEPT, OTHER_STRUCTURE, OTHER_STRUCTURE]),
    "chunked-legacy": ("m.h5", chunk, [MADE, KEPT, OTHER_STRUCTURE, OTHER_STRUCTURE]),
}


def trained(k):
    """A model with scalars, vectors and matrices, whose optimizer has variables too."""
    return models.compiled(k, models.functional(k))


def save_trained(k, path, seed):
    """Save one with random values; whole models hold the learning rate as text, which takes its own length."""
    model = d.fill(d.twins_of(trained, k)[0], seed)
    model.optimizer.learning_rate = 0.5
    with d.quiet():
        return d.save(model, path)


class TestSameStructure:
    @BOTH
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_load_is_exact(self, k, kind, tmp_path):
        name, rewrite, remarks = KINDS[kind]
        paths = []
        for seed in (1, 2):
            (tmp_path / str(seed)).mkdir()
            path = save_trained(k, tmp_path / str(seed) / name, seed)
            paths.append(rewrite(path) if rewrite else path)
        model, stock = d.twins_of(trained, k)
        with fa.Loader(model) as loader:
            background = in_background(loader)
            found = [
                compare(loader, model, stock, path, load=load).plan
                for path, load in zip((paths[0], paths[0], paths[1], paths[0]), (None, background) * 2, strict=True)
            ]
        assert found == remarks

    @BOTH
    @pytest.mark.parametrize("family", ["embedding", "attention", "convolutions", "group_norm"])
    def test_every_load_is_exact_for_all_kinds_of_layers(self, k, family, tmp_path):
        build = models.zoo(k)[family]
        paths = [d.saved(build, tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        model, stock = d.twins(build)
        with fa.Loader(model, options=TOGETHER) as loader:
            found = [compare(loader, model, stock, paths[i]).plan for i in (0, 1, 0)]
        assert found == [MADE, KEPT, KEPT]

    def test_every_dtype_and_shape(self, tmp_path):
        """As plain variables, on both devices; one is embedded, so that TensorFlow copies it when it is read."""
        shapes = [(), (0,), (1,), (5,), (1, 7), (7, 1), (2, 1, 3), (64, 300), (400, 200)]
        dtypes = ["float16", "float32", "float64", "bfloat16", "int8", "int32", "int64", "uint8", "bool", "complex64"]
        variables = {}
        for number, dtype in enumerate(dtypes):
            for shape in shapes:
                with tf.device(f"CPU:{number % 2}"):
                    variables[f"{dtype}{shape}"] = tf.Variable(tf.zeros(shape, dtype))
        expected = {}
        for seed in (1, 2):
            rng = np.random.default_rng(seed)
            with h5py.File(tmp_path / f"{seed}.h5", "w") as file:
                for name, variable in variables.items():
                    array = d.random_values(tuple(variable.shape), variable.dtype.as_numpy_dtype, rng)
                    expected[seed, name] = array.tobytes()
                    file[name] = array.view("V2") if variable.dtype == "bfloat16" else array
        with fa.Loader(variables) as loader:
            for turn, seed in enumerate((1, 2, 1, 1, 2)):
                tf.gather(variables["float32(400, 200)"], [3, 5])
                report = (in_background(loader) if turn % 2 else loader.load)(tmp_path / f"{seed}.h5")
                assert report.plan == (KEPT if turn else MADE)
                for name, variable in variables.items():
                    assert variable.numpy().tobytes() == expected[seed, name], (seed, name)

    def test_what_was_read_before_stays(self, files, contents, model):
        with fa.Loader(model) as loader:
            loader.load(files[1])
            held = [variable._value.read_value() for variable in model.variables]
            for seed in (2, 1, 2):
                loader.load(files[seed])
                assert values(model) == contents[seed]
                assert [tensor.numpy().tobytes() for tensor in held] == contents[1]

    def test_the_report(self, files, model):
        with fa.Loader(model) as loader:
            reports = [loader.load(files[1]), loader.load(files[2]), loader.load_async(files[1]).result(LONG)]
        assert [report.plan for report in reports] == [MADE, KEPT, KEPT]
        assert [report.file for report in reports] == [str(files[seed]) for seed in (1, 2, 1)]
        for report in reports:
            assert report.assigned == sum(report.routes.values()) == 6
            assert report.nbytes == sum(map(len, values(model)))
            assert "index" in report.seconds
            assert "total" in report.seconds
        assert "match" not in reports[1].seconds
        assert "kept" in str(reports[1])

    def test_two_loaders_of_one_model(self, files, contents, model):
        with fa.Loader(model) as one, fa.Loader(model, options=TOGETHER) as other:
            for seed in (1, 2, 2, 1):
                for loader in (one, other):
                    loader.load(files[seed])
                    assert values(model) == contents[seed]

    def test_others_may_load_in_between(self, files, contents, model):
        with fa.Loader(model) as loader:
            for first, second in ((1, 2), (2, 1), (1, 1)):
                loader.load(files[first])
                fa.load_weights(model, files[second])
                assert values(model) == contents[second]
                model.load_weights(files[first])
                assert values(model) == contents[first]


# Another structure.


def swap_places(path, one, other):
    """Let two tensors of the same size change places, by what the index says."""
    with h5py.File(path) as file:
        places = [struct.pack("<QQ", file[k].id.get_offset(), file[k].id.get_storage_size()) for k in (one, other)]
    content = path.read_bytes()
    assert [content.count(place) for place in places] == [1, 1]
    first, second = map(content.index, places)
    for position, place in ((first, places[1]), (second, places[0])):
        content = content[:position] + place + content[position + len(place) :]
    path.write_bytes(content)


class TestOtherStructures:
    @pytest.fixture
    def loader(self, files, model):
        with fa.Loader(model) as found:
            found.load(files[1])
            yield found

    def unfit(self, name, files, folder):
        """Make a file that can't be loaded; return its path."""
        path = folder / "unfit.weights.h5"
        content = files[1].read_bytes()
        if name == "another model":
            return files["bad"]
        if name == "missing":
            return path
        if name == "a folder":
            path.mkdir()
        elif name == "another format":
            path = d.write_legacy(path, [("dense", [("kernel", np.ones((4, 5), "f4"))])])
        elif name == "another name":
            path = path.with_name("unfit.data")
            path.write_bytes(content)
        else:
            damaged = {
                "empty": b"",
                "no HDF5": bytes(len(content)),
                "cut": content[: len(content) // 2],
                "one byte short": content[:-1],
                "damaged": content.replace(b"TREE", b"eert"),
            }
            path.write_bytes(damaged[name])
        return path

    @pytest.mark.parametrize(
        ("background", "is_first"),
        [(False, True), (False, False), (True, False)],
        ids=["first", "load", "load_async"],
    )
    @pytest.mark.parametrize(
        "name",
        [
            "another model",
            "missing",
            "a folder",
            "another format",
            "another name",
            "empty",
            "no HDF5",
            "cut",
            "one byte short",
            "damaged",
        ],
    )
    def test_what_does_not_fit(self, name, background, is_first, files, contents, model, tmp_path):
        """The error is that of `load_weights`, nothing changes, and the next load is as if nothing had been."""
        path = self.unfit(name, files, tmp_path)
        with fa.Loader(model) as loader:
            if not is_first:
                loader.load(files[1])
            before = d.snapshot(model)
            expected = d.observe(lambda: fa.load_weights(model, path)).error
            with pytest.raises(type(expected)) as caught:
                (in_background(loader) if background else loader.load)(path)
            assert type(caught.value) is type(expected)
            assert str(caught.value) == str(expected)
            assert (caught.value.file, caught.value.hint) == (expected.file, expected.hint)
            d.assert_untouched(model, before)
            report = loader.load(files[2])
            assert report.plan == (MADE if is_first else KEPT)
            assert values(model) == contents[2]

    def test_tensors_in_another_order(self, files, contents, loader, model, tmp_path):
        path = tmp_path / "other.weights.h5"
        with h5py.File(files[2]) as source, h5py.File(path, "w") as target:
            keys = []
            source.visititems(lambda key, item: keys.append(key) if isinstance(item, h5py.Dataset) else None)
            source.visititems(lambda key, item: target.require_group(key) if key not in keys else None)
            for key in reversed(keys):
                target[key] = source[key][()]
        assert loader.load(path).plan == OTHER_STRUCTURE
        assert values(model) == contents[2]

    def test_two_tensors_that_changed_places(self, files, contents, loader, model, copy):
        """The same size, the same gaps: only the addresses in the index are others."""
        one, other = "layers/dense/vars/1", "layers/dense_1/vars/1"
        swap_places(copy, one, other)
        assert copy.stat().st_size == files[1].stat().st_size
        assert loader.load(copy).plan == OTHER_STRUCTURE
        expected = list(contents[1])
        expected[1], expected[3] = expected[3], expected[1]
        assert values(model) == expected

    def test_another_dtype(self, files, loader, model, copy):
        stock = d.fresh(dense)
        with h5py.File(copy, "r+") as file:
            array = file["layers/dense/vars/0"][()].astype("f8") * (1 + 1e-12)
            del file["layers/dense/vars/0"]
            file["layers/dense/vars/0"] = array
        report = compare(loader, model, stock, copy)
        assert report.plan == OTHER_STRUCTURE
        assert [line.partition(": ")[2] for line in report.cast] == ["<f8 to float32"]
        report = compare(loader, model, stock, files[1])
        assert (report.plan, report.cast) == (OTHER_STRUCTURE, ())

    def test_another_dtype_of_the_same_size(self, loader, model, copy):
        """Integers where floats were: one byte of the index is another."""
        stock = d.fresh(dense)
        with h5py.File(copy, "r+") as file:
            del file["layers/dense/vars/1"]
            file["layers/dense/vars/1"] = np.arange(5, dtype="i4")
        assert compare(loader, model, stock, copy).plan == OTHER_STRUCTURE

    def test_garbage_at_the_end(self, files, loader, model, copy):
        stock = d.fresh(dense)
        for count in range(1, 4):
            with copy.open("ab") as file:
                file.write(b"garbage")
            assert compare(loader, model, stock, copy).plan == OTHER_STRUCTURE, count
        assert compare(loader, model, stock, copy).plan == KEPT

    def test_garbage_in_the_tensors(self, loader, model, copy):
        """Is nothing but other values, as it is for stock."""
        stock, rng = d.fresh(dense), np.random.default_rng(0)
        extents = [extent for record in fa.inspect(copy).contents.records.values() for extent in record.extents]
        with copy.open("r+b") as file:
            for start, length in extents:
                file.seek(start)
                file.write((b"\x01\x00\xa0\x7f" + rng.bytes(length))[:length])  # a NaN that signals, and noise
        assert compare(loader, model, stock, copy).plan == KEPT
        assert all(np.isnan(np.frombuffer(value, "f4")[0]) for value in values(model))

    @pytest.mark.parametrize("how", ["replaced", "in place"])
    def test_another_file_at_the_same_path_with_the_same_time(self, how, files, contents, model, copy, tmp_path):
        attacks.settle(copy)
        status = copy.stat()
        with fa.Loader(model) as loader:
            loader.load(copy)
            assert values(model) == contents[1]
            new = tmp_path / "new" if how == "replaced" else copy
            new.write_bytes(files[2].read_bytes())
            os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
            new.replace(copy)
            assert (copy.stat().st_size, copy.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
            assert loader.load(copy).plan == KEPT
            assert values(model) == contents[2]

    @pytest.mark.parametrize("cut", [0.5, -1])
    def test_a_file_that_was_cut_since(self, cut, model, copy):
        with fa.Loader(model) as loader:
            loader.load(copy)
            before = d.snapshot(model)
            os.truncate(copy, int(copy.stat().st_size * cut) if cut > 0 else copy.stat().st_size + cut)
            expected = d.observe(lambda: fa.load_weights(d.fresh(dense), copy)).error
            with pytest.raises(type(expected)) as caught:
                loader.load(copy)
            assert str(caught.value) == str(expected)
            d.assert_untouched(model, before)

    @pytest.mark.parametrize("background", [False, True], ids=["load", "load_async"])
    @pytest.mark.parametrize("how", ["written", "cut", "touched"])
    def test_a_file_that_changes_while_it_is_read(self, how, background, files, contents, loader, model, copy, brake):
        before = d.snapshot(model)
        future = loader.load_async(copy) if background else None
        errors = []

        def load():
            with pytest.raises((fa.Changed, fa.Truncated)) as caught:
                future.result(LONG) if background else loader.load(copy)
            errors.append(caught.value)

        with running(load):
            assert brake.reached.wait(LONG)
            if how == "written":
                copy.write_bytes(files[2].read_bytes())
            elif how == "cut":
                os.truncate(copy, 5000)
            os.utime(copy, ns=(1, 1))
            brake.may_go.set()
        assert errors[0].assigned == ()
        assert errors[0].file == str(copy)
        d.assert_untouched(model, before)
        assert loader.load(files[2]).plan == KEPT
        assert values(model) == contents[2]

    def test_a_file_that_is_replaced_while_it_is_read(self, files, contents, loader, model, copy, brake, tmp_path):
        """What was opened is what is loaded."""
        future = loader.load_async(copy)
        assert brake.reached.wait(LONG)
        (tmp_path / "new").write_bytes(files[2].read_bytes())
        (tmp_path / "new").replace(copy)
        brake.may_go.set()
        assert future.result(LONG).plan == KEPT
        assert values(model) == contents[1]

    def test_another_format(self, files, contents, loader, model, tmp_path):
        twin = d.fresh(dense)
        twin.load_weights(files[2])
        legacy = d.save(twin, tmp_path / "2.h5")
        again = AGAIN + "the file's format differs from that of the file before"
        for path, remark, seed in (
            (legacy, again, 2),
            (legacy, KEPT, 2),
            (files[1], again, 1),
            (files[2], KEPT, 2),
        ):
            assert loader.load(path).plan == remark
            assert values(model) == contents[seed]

    def test_functions_do_not_pile_up(self, files, loader, copy):
        """Each plan has its own, and takes them along."""
        gc.collect()
        counts = []
        for _ in range(4):
            with copy.open("ab") as file:
                file.write(b"garbage")
            assert loader.load(copy).plan == OTHER_STRUCTURE
            gc.collect()
            counts.append(len(functions()))
        assert counts == counts[:1] * 4

    def test_a_link_to_another_file(self, tmp_path):
        """What stands in the other file is not compared, so nothing is kept."""
        options = fa.LoadOptions(allow={"external-link"})
        with h5py.File(tmp_path / "links.h5", "w") as file:
            file["w"] = h5py.ExternalLink(str(tmp_path / "there.h5"), "x")
        variable = tf.Variable(tf.zeros((2, 3)))
        with fa.Loader({"w": variable}, options=options) as loader:
            for array in (np.full((2, 3), 1.5, "f4"), np.full((2, 3), 2.5, "f8"), np.full((3, 2), 3.5, "f4")):
                with h5py.File(tmp_path / "there.h5", "w") as file:
                    file["x"] = array
                if array.shape == (2, 3):
                    report = loader.load(tmp_path / "links.h5")
                    assert variable.numpy().tolist() == array.tolist()
                    assert bool(report.cast) == (array.dtype == "f8")
                else:
                    with pytest.raises(fa.Mismatch):
                        loader.load(tmp_path / "links.h5")


# The model changes.


class TestModelChanges:
    @BOTH
    @pytest.mark.parametrize(
        ("kind", "match"), [("functional", "stock"), ("functional", "names"), ("composite", "stock")]
    )
    def test_layers_frozen_and_thawed(self, k, kind, match, tmp_path):
        """The order of a legacy file depends on it: what comes of each load is what comes of `load_weights`."""
        (model, *parts), (twin, *others) = models.nested(k, kind, named=False), models.nested(k, kind, named=False)
        path = d.save(d.fill(models.nested(k, kind, named=False)[0], 1), tmp_path / "m.h5")
        options = fa.LoadOptions(match=match)
        outcomes = []
        with fa.Loader(model, options=options) as loader:
            for mode in (*models.MODES, "train"):
                for base, layers in (parts, others):
                    models.set_mode(base, layers, mode)
                d.perturb(model, 0.25)
                d.perturb(twin, 0.25)
                ours = d.observe(lambda: loader.load(path))
                fresh = d.observe(lambda: fa.load_weights(twin, path, options=options))
                assert type(ours.error) is type(fresh.error)
                assert values(model) == values(twin)
                outcomes.append(fresh.error is None)
                if fresh.error is None:
                    assert ours.result.repaired == fresh.result.repaired
        assert outcomes[0]
        assert outcomes[-1]

    @BOTH
    def test_frozen_and_thawed_of_the_other_format(self, k, tmp_path):
        paths = [d.saved(lambda: dense(k), tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        model, stock = d.twins(lambda: dense(k))
        with fa.Loader(model) as loader:
            assert compare(loader, model, stock, paths[0]).plan == MADE
            model.layers[1].trainable = stock.layers[1].trainable = False
            assert compare(loader, model, stock, paths[1]).plan == OTHER_MODEL
            assert compare(loader, model, stock, paths[0]).plan == KEPT

    @BOTH
    def test_a_layer_more_and_a_layer_less(self, k, tmp_path):
        small = d.saved(lambda: models.chain(k, 4, 4), tmp_path / "small.weights.h5", 1)
        large = d.saved(lambda: models.chain(k, 4, 4, 4), tmp_path / "large.weights.h5", 2)
        model, stock = d.twins(lambda: models.chain(k, 4, 4))
        with fa.Loader(model) as loader:
            assert compare(loader, model, stock, small).plan == MADE
            for each in (model, stock):
                each.add(k.layers.Dense(4))
            assert compare(loader, model, stock, large).plan == OTHER_MODEL
            with pytest.raises(fa.Mismatch):
                loader.load(small)
            for each in (model, stock):
                each.pop()
            assert compare(loader, model, stock, small).plan == OTHER_MODEL
            assert compare(loader, model, stock, small).plan == KEPT

    @BOTH
    def test_a_layer_without_weights(self, k, tmp_path):
        path = d.saved(lambda: models.chain(k, 4, 4), tmp_path / "m.weights.h5")
        model, stock = d.twins(lambda: models.chain(k, 4, 4))
        with fa.Loader(model) as loader:
            compare(loader, model, stock, path)
            for each in (model, stock):
                each.add(k.layers.ReLU())
            assert compare(loader, model, stock, path).plan == OTHER_MODEL

    @BOTH
    @pytest.mark.parametrize("where", ["attributes", "list", "mapping"])
    def test_layers_that_changed_places(self, k, where, tmp_path):
        """The file goes by attributes, and nothing else tells."""

        class Pair(k.Model):
            def __init__(self):
                super().__init__()
                layers = [k.layers.Dense(3, name="x"), k.layers.Dense(3, name="y")]
                if where == "attributes":
                    self.one, self.two = layers
                elif where == "list":
                    self.both = layers
                else:
                    self.both = dict(zip("ab", layers, strict=True))

            def get(self):
                if where == "attributes":
                    return [self.one, self.two]
                return list(self.both.values() if where == "mapping" else self.both)

            def call(self, inputs):
                one, two = self.get()
                return two(one(inputs))

            def swap(self):
                if where == "attributes":
                    self.one, self.two = self.two, self.one
                else:
                    first, second = "ab" if where == "mapping" else (0, 1)
                    self.both[first], self.both[second] = self.both[second], self.both[first]

        def build():
            model = Pair()
            model(np.zeros((1, 3), "f4"))
            return model

        path = d.saved(build, tmp_path / "m.weights.h5")
        model, stock = d.twins(build)
        with fa.Loader(model) as loader:
            assert compare(loader, model, stock, path).plan == MADE
            model.swap(), stock.swap()
            assert compare(loader, model, stock, path).plan == OTHER_MODEL
            assert compare(loader, model, stock, path).plan == KEPT

    def test_inside_a_stateless_scope(self, files, contents, model):
        """There an assignment goes to the scope."""
        with fa.Loader(model) as loader:
            loader.load(files[1])
            before = values(model)
            with keras.StatelessScope() as scope:
                assert loader.load(files[2]).plan == OTHER_MODEL
                inside = [np.asarray(scope.get_current_value(variable)).tobytes() for variable in model.variables]
            assert (values(model), inside) == (before, contents[2])
            assert loader.load(files[2]).plan == OTHER_MODEL
        assert values(model) == contents[2]

    def test_lora(self, files, model):
        stock = d.fresh(dense)
        with fa.Loader(model) as loader:
            compare(loader, model, stock, files[1])
            for each in (model, stock):
                each.layers[1].enable_lora(2)
            report = compare(loader, model, stock, files[2])
            assert report.plan == OTHER_MODEL
            assert report.routes["hook"] > 0
            assert compare(loader, model, stock, files[1]).plan == KEPT
            assert compare(loader, model, stock, files[2], load=in_background(loader)).plan == KEPT

    def test_quantized(self, files, model, tmp_path):
        def quantized():
            found = dense()
            found.quantize("int8")
            return found

        path = d.saved(quantized, tmp_path / "int8.weights.h5")
        stock = d.fresh(dense)
        with fa.Loader(model) as loader:
            compare(loader, model, stock, files[1])
            with d.quiet():
                model.quantize("int8")
                stock.quantize("int8")
            assert compare(loader, model, stock, path).plan == OTHER_MODEL
            assert compare(loader, model, stock, path).plan == KEPT

    @BOTH
    def test_an_optimizer_that_is_built_later(self, k, tmp_path):
        """A file that holds its variables fills them, once there are any."""
        path = d.saved(lambda: trained(k), tmp_path / "m.weights.h5", 3)
        model, stock = d.twins(lambda: models.compiled(k, models.functional(k), slots=False))
        with fa.Loader(model) as loader:
            assert "optimizer" in compare(loader, model, stock, path).skipped[0]
            for each in (model, stock):
                each.optimizer.build(each.trainable_variables)
            report = compare(loader, model, stock, path)
            assert (report.plan, report.skipped) == (OTHER_MODEL, ())
            assert compare(loader, model, stock, path).plan == KEPT

    @BOTH
    def test_another_optimizer(self, k, tmp_path):
        path = d.saved(lambda: trained(k), tmp_path / "m.weights.h5", 3)
        model, stock = d.twins(lambda: trained(k))
        with fa.Loader(model) as loader:
            compare(loader, model, stock, path)
            for each in (model, stock):
                models.compiled(k, each)
            assert compare(loader, model, stock, path).plan == OTHER_MODEL

    def test_a_mapping(self, files, contents):
        one, other = (tf.Variable(tf.zeros((4, 5))) for _ in range(2))
        variables = {"layers/dense/vars/0": one}
        with fa.Loader(variables) as loader:
            loader.load(files[1])
            variables["layers/dense/vars/0"] = other
            report = loader.load(files[2])
            assert (report.plan, report.assigned) == (OTHER_MODEL, 1)
            assert [one.numpy().tobytes(), other.numpy().tobytes()] == [contents[1][0], contents[2][0]]
            variables["layers/dense_1/vars/0"] = third = tf.Variable(tf.zeros((5, 5)))
            assert loader.load(files[1]).assigned == 2
            assert third.numpy().tobytes() == contents[1][2]
            variables["layers/dense_2/vars/1"] = variables.pop("layers/dense_1/vars/0")
            with pytest.raises(fa.Mismatch, match="the variable's shape"):
                loader.load(files[1])

    def test_a_list(self, tmp_path):
        with h5py.File(tmp_path / "m.h5", "w") as file:
            file["one"], file["two"] = np.float32(1.5), np.float32(2.5)
        variables = [tf.Variable(0.0, name="one")]
        with fa.Loader(variables) as loader:
            loader.load(tmp_path / "m.h5")
            variables.append(tf.Variable(0.0, name="two"))
            assert loader.load(tmp_path / "m.h5").plan == OTHER_MODEL
        assert [variable.numpy() for variable in variables] == [1.5, 2.5]

    def test_a_layer_for_a_model(self, tmp_path):
        layers = [keras.layers.Dense(3) for _ in range(2)]
        for layer in layers:
            layer.build((None, 4))
        sources = [tmp_path / f"{seed}.weights.h5" for seed in (1, 2)]
        for seed, path in enumerate(sources):
            with h5py.File(path, "w") as file:
                file["vars/0"], file["vars/1"] = np.full((4, 3), seed, "f4"), np.full(3, seed, "f4")
        with fa.Loader(layers[0]) as loader:
            for turn in range(3):
                assert loader.load(sources[turn % 2]).plan == (KEPT if turn else MADE)
                assert all((np.asarray(variable) == turn % 2).all() for variable in layers[0].variables)


# In the background.


class TestLoadAsync:
    @pytest.fixture
    def loader(self, model):
        with fa.Loader(model) as found:
            yield found

    def test_the_result_is_a_report(self, files, contents, loader, model):
        future = loader.load_async(files[1])
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(LONG).assigned == 6
        assert future.exception() is None
        assert future.path == str(files[1])
        assert (future.done(), future.running(), future.cancelled(), future.cancel()) == (True, False, False, False)
        assert values(model) == contents[1]

    @pytest.mark.parametrize("first", [0, 1, 2, 5])
    def test_nothing_changes_while_it_reads(self, first, files, contents, model, brake):
        """However far it came."""
        options = fa.LoadOptions(read_bytes=4096, gap_bytes=0, threads=1, arena_bytes=0)
        path, before = d.save(d.fill(wide(), 1), files[1].with_name("wide.weights.h5")), wide()
        d.perturb(before, 0.5)
        old, brake.first = values(before), first
        with fa.Loader(before, options=options) as loader:
            future = loader.load_async(path)
            assert brake.reached.wait(LONG)
            assert (future.done(), future.running()) == (False, True)
            assert brake.reads == first + 1
            assert values(before) == old
            brake.may_go.set()
            assert future.result(LONG).assigned == len(old)
        assert all(new != one for new, one in zip(values(before), old, strict=True))

    def test_nothing_changes_until_the_lock_is_free(self, files, contents, model):
        lock, old = Lock(), values(model)
        with together(model, lock) as loader:
            with lock.inner:
                future = loader.load_async(files[1])
                assert lock.asked.wait(LONG)
                assert not future.done()
                assert values(model) == old
                with pytest.raises(concurrent.futures.TimeoutError):
                    future.result(0)
            future.result(LONG)
        assert values(model) == contents[1]

    def test_progress(self, files, model, brake):
        lock = Lock()
        with together(model, lock) as loader, lock.inner:
            future = loader.load_async(files[1])
            assert brake.reached.wait(LONG)
            assert future.progress is None
            brake.may_go.set()
            assert lock.asked.wait(LONG)
            read = future.progress
            assert read.read_bytes == read.total_bytes == sum(map(len, values(model)))
            assert (read.done_bytes, read.done_variables, read.total_variables, read.variable) == (0, 0, 6, "")
            lock.inner.release()
            future.result(LONG)
            lock.inner.acquire()
            done = future.progress
            assert (done.done_bytes, done.done_variables) == (done.total_bytes, 6)
            assert done.seconds >= read.seconds
            assert done.variable

    def test_they_run_in_order(self, files, contents, loader, model, brake):
        order, seen = [], []

        def note(future):
            order.append(future.path)
            seen.append(values(model))

        futures = [loader.load_async(files[seed]) for seed in (1, 2, 2, 1, 2)]
        for future in futures:
            future.add_done_callback(note)
        brake.may_go.set()
        done, rest = concurrent.futures.wait(futures, LONG)
        loader.close()  # the callback of the last is over
        assert (done, rest) == (set(futures), set())
        assert order == [future.path for future in futures]
        assert [future.result().plan for future in futures] == [MADE, KEPT, KEPT, KEPT, KEPT]
        assert seen == [contents[seed] for seed in (1, 2, 2, 1, 2)]

    def test_as_completed(self, files, loader, brake):
        futures = [loader.load_async(files[seed]) for seed in (1, "bad", 2)]
        futures[2].cancel()
        brake.may_go.set()
        found = [type(future.exception()) for future in concurrent.futures.as_completed(futures, LONG)]
        assert sorted(kind.__name__ for kind in found) == ["Cancelled", "Mismatch", "NoneType"]

    def test_awaited(self, files, contents, loader, model):
        async def serve():
            return await asyncio.wait_for(asyncio.wrap_future(loader.load_async(files[1])), LONG)

        assert asyncio.run(serve()).assigned == 6
        assert values(model) == contents[1]

    def test_awaited_and_cancelled(self, files, loader, model, brake):
        old, futures = values(model), []

        async def serve():
            futures.append(loader.load_async(files[1]))
            task = asyncio.wrap_future(futures[0])
            await asyncio.get_running_loop().run_in_executor(None, brake.reached.wait, LONG)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)  # the loop passes it on
            brake.may_go.set()

        asyncio.run(serve())
        assert isinstance(futures[0].exception(LONG), fa.Cancelled)
        assert values(model) == old

    def test_awaited_and_failed(self, files, loader):
        async def serve():
            await asyncio.wrap_future(loader.load_async(files["bad"]))

        with pytest.raises(fa.Mismatch, match="could not be loaded"):
            asyncio.run(serve())

    def test_after_an_error_in_a_callback(self, files, contents, loader, model):
        """The thread goes on; concurrent.futures logs such errors."""
        future = loader.load_async(files[1])
        future.add_done_callback(lambda _: 1 / 0)
        future.result(LONG)
        loader.load_async(files[2]).result(LONG)
        assert values(model) == contents[2]

    def test_a_callback_may_load(self, files, contents, loader, model):
        over = threading.Event()

        def more(_):
            loader.load(files[2])
            loader.load_async(files[1]).add_done_callback(lambda _: over.set())

        loader.load_async(files[1]).add_done_callback(more)
        assert over.wait(LONG)
        assert values(model) == contents[1]

    def test_load_while_it_runs(self, files, contents, loader, model, brake):
        future = loader.load_async(files[1])
        assert brake.reached.wait(LONG)
        with running(lambda: loader.load(files[2])):
            brake.may_go.set()
        assert future.done()
        assert values(model) == contents[2]


def keras_1(path, seed):
    """Write a file of Keras 1, whose convolutions tf_keras rewrites, and return what makes the model."""

    def build():
        inputs = x = tf_keras.Input((6, 2))
        for name in ("one", "two"):
            x = tf_keras.layers.Conv1D(3, 2, name=name)(x)
        return tf_keras.Model(inputs, x, name="old")

    layers = []
    for layer in d.fill(d.fresh(build), seed).layers[1:]:
        kernel, bias = (weight.numpy() for weight in layer.weights)
        layers.append((layer.name, [(f"{layer.name}/k:0", kernel[:, None]), (f"{layer.name}/b:0", bias)]))
    d.write_legacy(path, layers, version="1", backend="tensorflow")
    return build


class TestLibraryCode:
    """What only the library can load, it loads in the burst."""

    def test_conversions(self, tmp_path):
        paths = [tmp_path / f"{seed}.h5" for seed in (1, 2)]
        builds = [keras_1(path, seed) for seed, path in enumerate(paths)]
        model, stock = d.twins(builds[0])
        with fa.Loader(model) as loader:
            for turn in range(4):
                load = in_background(loader) if turn % 2 else None
                report = compare(loader, model, stock, paths[turn // 2], load=load)
                assert (report.plan, report.routes) == (KEPT if turn else MADE, {"convert": 2, "fused": 2})

    @pytest.mark.parametrize("background", [False, True], ids=["load", "load_async"])
    def test_layers_that_load_themselves_read_nothing_under_the_lock(
        self, background, files, contents, model, monkeypatch
    ):
        for layer in model.layers:
            layer.enable_lora(2)
        reads = []

        def read(*_):
            reads.append(lock.is_held)

        class Held:
            is_held = False

            def __enter__(self):
                self.is_held = True

            def __exit__(self, *_):
                self.is_held = False

        lock = Held()
        set_runtime(monkeypatch, make_source=faults.faulty(before=read))
        with fa.Loader(model, lock=lock, options=TOGETHER) as loader:
            for _ in range(2):
                report = loader.load_async(files[1]).result(LONG) if background else loader.load(files[1])
                assert report.routes["hook"] > 0
        assert reads
        assert not any(reads)
        assert [layer.kernel.numpy().tobytes() for layer in model.layers] == contents[1][::2]

    @pytest.mark.parametrize("kind", ["plain", "hooks", "conversions"])
    def test_a_disk_that_fails(self, kind, files, tmp_path, monkeypatch):
        """At any read: no variable has changed in the end."""
        if kind == "conversions":
            path = tmp_path / "m.h5"
            model = d.fresh(keras_1(path, 1))
        else:
            path, model = files[1], d.fresh(dense)
            if kind == "hooks":
                for layer in model.layers:
                    layer.enable_lora(2)
        allowed = [0]

        def fail(*_):
            if not allowed[0]:
                raise OSError(5, "Input/output error")
            allowed[0] -= 1

        set_runtime(monkeypatch, make_source=faults.faulty(before=fail))
        d.perturb(model, 0.5)
        before = d.snapshot(model)
        with fa.Loader(model, options=fa.LoadOptions(threads=1, read_bytes=4096, gap_bytes=0)) as loader:
            for reads in itertools.count():
                allowed[0] = reads
                error = loader.load_async(path).exception(LONG)
                if error is None:
                    break
                assert isinstance(error, ReadFailed)
                assert error.assigned == ()
                d.assert_untouched(model, before)
        assert reads >= (1 if kind == "plain" else 4)


def wide():
    """Six matrices, each more than a read."""
    return models.chain(keras, 40, 40, 40, 40, 40, 40, use_bias=False, size=40)


class TestCancel:
    def assert_cancelled(self, future, model, old):
        with pytest.raises(fa.Cancelled, match="no variable was changed"):
            future.result(LONG)
        assert future.cancelled()
        assert future.done()
        assert values(model) == old

    def test_before_it_starts(self, files, contents, model, brake):
        with fa.Loader(model) as loader:
            first = loader.load_async(files[1])
            assert brake.reached.wait(LONG)
            second = loader.load_async(files[2])
            assert second.cancel()
            assert second.cancel()
            assert not second.done()
            brake.may_go.set()
            first.result(LONG)
            self.assert_cancelled(second, model, contents[1])
            assert not second.cancel()

    @pytest.mark.parametrize("first", [0, 1, 2, 5])
    def test_while_it_reads(self, first, tmp_path, brake):
        model = d.perturb(wide(), 0.5)
        path, old = d.save(d.fill(wide(), 1), tmp_path / "wide.weights.h5"), values(model)
        brake.first = first
        options = fa.LoadOptions(read_bytes=4096, gap_bytes=0, threads=1, arena_bytes=0)
        with fa.Loader(model, options=options) as loader:
            future = loader.load_async(path)
            assert brake.reached.wait(LONG)
            assert future.cancel()
            assert not future.done()
            brake.may_go.set()
            self.assert_cancelled(future, model, old)
            assert brake.reads == first + 1
            report = loader.load_async(path).result(LONG)
        assert (report.plan, report.assigned) == (KEPT, 6)

    def test_while_it_waits_for_the_lock(self, files, contents, model):
        lock, old = Lock(), values(model)
        with together(model, lock) as loader:
            with lock.inner:
                future = loader.load_async(files[1])
                assert lock.asked.wait(LONG)
                assert future.cancel()
            self.assert_cancelled(future, model, old)
            assert not lock.inner.locked()
            loader.load(files[2])
        assert values(model) == contents[2]

    def test_too_late(self, files, contents, model):
        """Variables have begun to change."""
        lock = Lock()
        lock.may_leave.clear()
        with together(model, lock) as loader:
            future = loader.load_async(files[1])
            assert lock.leaving.wait(LONG)
            assert not future.done()
            assert not future.cancel()
            lock.may_leave.set()
            assert future.result(LONG).assigned == 6
            assert not future.cancelled()
        assert values(model) == contents[1]

    def test_after_an_error(self, files, model):
        with fa.Loader(model) as loader:
            future = loader.load_async(files["bad"])
            assert isinstance(future.exception(LONG), fa.Mismatch)
            assert not future.cancel()
            assert not future.cancelled()

    def test_a_load_that_would_have_failed(self, files, model, brake, copy):
        """What was cancelled is cancelled, whatever else happened to it."""
        with fa.Loader(model) as loader:
            future = loader.load_async(copy)
            assert brake.reached.wait(LONG)
            assert future.cancel()
            os.truncate(copy, 5000)
            brake.may_go.set()
            error = future.exception(LONG)
        assert isinstance(error, fa.Cancelled)
        assert future.cancelled()

    def test_what_was_read_goes(self, files, model, brake):
        """Though somebody keeps the future."""

        def batches():
            gc.collect()
            # Not isinstance, which asks a proxy whose object is gone.
            return sum(issubclass(type(each), OpenBatch) for each in gc.get_objects())

        before = batches()
        with fa.Loader(model) as loader:
            future = loader.load_async(files[1])
            assert brake.reached.wait(LONG)
            assert batches() > before
            future.cancel()
            brake.may_go.set()
            assert future.exception(LONG)
            assert batches() == before


# Several threads.


class TestThreads:
    @pytest.mark.parametrize("swap", ["each", "together"])
    def test_several_load(self, swap, files, contents, model):
        reports, barrier = [], threading.Barrier(4)

        def work(number):
            barrier.wait(LONG)
            for turn in range(5):
                path = files[1 + (number + turn) % 2]
                reports.append(loader.load(path) if number % 2 else loader.load_async(path).result(LONG))

        with fa.Loader(model, options=fa.LoadOptions(swap=swap)) as loader:
            with running(lambda: work(0)), running(lambda: work(1)), running(lambda: work(2)), running(lambda: work(3)):
                pass
            assert values(model) in contents.values()
        assert sorted(report.plan for report in reports) == [KEPT] * 19 + [MADE]
        assert {report.assigned for report in reports} == {6}

    @pytest.mark.parametrize("swap", ["each", "together"])
    def test_no_variable_is_ever_torn(self, swap, tmp_path):
        """Small ones, which share memory, large ones, and one that is looked up in."""
        model = keras.Sequential(
            [
                keras.Input((1,), dtype="int32"),
                keras.layers.Embedding(3000, 100),
                keras.layers.Flatten(),
                keras.layers.Dense(600),
                keras.layers.Dense(30),
                keras.layers.Dense(3),
            ]
        )
        paths = [constant(tmp_path / f"{value}.weights.h5", model, value) for value in (1.0, 2.0)]
        weights = [variable._value for variable in model.variables]
        two = tf.function(lambda: [tf.identity(weights[1]), tf.identity(weights[3])])
        whole, rows = tf.function(model), tf.constant([5, 2999])
        outputs = []
        for path in paths:
            fa.load_weights(model, path)
            outputs.append(whole(rows[:, None]).numpy().tobytes())
        assert outputs[0] != outputs[1]
        stop, counts = threading.Event(), [0, 0, 0]

        def check(array):
            assert array.min() == array.max()
            assert array.flat[0] in (1.0, 2.0)
            return array.flat[0]

        def read():
            while not stop.is_set():
                with loader.lock:
                    found = {check(weight.numpy()) for weight in weights}
                assert swap == "each" or len(found) == 1
                counts[0] += 1

        def look_up():
            while not stop.is_set():
                check(tf.gather(weights[0], rows).numpy())
                counts[1] += 1

        def call():
            while not stop.is_set():
                with loader.lock:
                    found, output = {check(array.numpy()) for array in two()}, whole(rows[:, None]).numpy()
                assert swap == "each" or (len(found) == 1 and output.tobytes() in outputs)
                counts[2] += 1

        with fa.Loader(model, options=fa.LoadOptions(swap=swap)) as loader:
            loader.load(paths[0])
            with running(read), running(look_up), running(call):
                try:
                    for turn in range(60):
                        load = in_background(loader) if turn % 3 else loader.load
                        assert load(paths[turn % 2]).plan == KEPT
                finally:
                    stop.set()
        assert min(counts) > 0

    def test_the_lock_is_held_while_variables_change(self, files, contents, model):
        """From the first to the last, and by whoever loads."""
        held, before = [], values(model)

        def look(event):
            def take():
                held.append((event.done_variables, loader.lock.acquire(blocking=False)))
                if held[-1][1]:
                    loader.lock.release()

            with running(take):
                pass

        with fa.Loader(model, options=TOGETHER) as loader:
            loader.load(files[1], progress=look)
            assert loader.lock.acquire(blocking=False)
        assert {count for count, _ in held} >= {0, 6}
        assert [acquired for _, acquired in held] == [count == 0 for count, _ in held]
        assert before != contents[1]

    def test_the_lock_is_left_alone_otherwise(self, files, contents, model):
        with fa.Loader(model) as loader, loader.lock:
            loader.load(files[1])
            loader.load_async(files[2]).result(LONG)
        assert values(model) == contents[2]

    def test_the_lock_may_be_the_server_s(self, files, contents, model):
        lock = threading.RLock()
        with fa.Loader(model, lock=lock, options=TOGETHER) as loader:
            assert loader.lock is lock
            with lock:
                loader.load(files[1])
            loader.load_async(files[2]).result(LONG)
        assert values(model) == contents[2]

    def test_the_lock_is_free_after_an_error(self, files, model):
        """One in the middle of the assignments."""

        def stop(event):
            if event.done_variables:
                raise ZeroDivisionError

        with fa.Loader(model, options=TOGETHER) as loader:
            with pytest.raises(ZeroDivisionError) as caught:
                loader.load(files[1], progress=stop)
            assert caught.value.assigned
            assert loader.lock.acquire(blocking=False)

    def test_the_lock_is_held_while_constants_are_renewed(self, tmp_path):
        """What a layer derives from its weights belongs to them."""

        def build():
            inputs = keras.Input((3,))
            return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Normalization()(inputs)))

        model, source = d.twins(build)
        for each, factor in ((model, 1), (source, 100)):
            each.layers[1].adapt(factor * np.random.default_rng(0).random((9, 3)))
        source.save_weights(tmp_path / "m.weights.h5")
        lock, seen = Lock(), []
        lock.may_leave.clear()
        with together(model, lock) as loader:
            future = loader.load_async(tmp_path / "m.weights.h5")
            assert lock.leaving.wait(LONG)
            seen.append(np.asarray(model.layers[1].mean).tobytes())
            lock.may_leave.set()
            future.result(LONG)
        assert seen == [np.asarray(source.layers[1].mean).tobytes()]


# The end.


class TestClose:
    def test_it_may_be_closed_twice_and_unused(self, files, model):
        fa.Loader(model).close()
        loader = fa.Loader(model)
        loader.load(files[1])
        loader.load_async(files[1]).result(LONG)
        loader.close()
        loader.close()

    def test_afterwards_nothing_can_be_loaded(self, files, model):
        for is_used in (False, True):
            with fa.Loader(model) as loader:
                if is_used:
                    loader.load(files[1])
            before = d.snapshot(model)
            for load in (loader.load, loader.load_async):
                with pytest.raises(RuntimeError, match="this loader is closed"):
                    load(files[2])
            d.assert_untouched(model, before)

    def test_with_closes_after_an_error(self, files, model):
        loader = fa.Loader(model)
        with pytest.raises(fa.Mismatch), loader:
            loader.load(files["bad"])
        with pytest.raises(RuntimeError, match="closed"):
            loader.load(files[1])

    def closing(self, loader, monkeypatch):
        """Close in a thread; return what tells that it has begun to cancel, and the thread."""
        begun, cancel = threading.Event(), LoadFuture.cancel

        def noted(future):
            found = cancel(future)
            begun.set()
            return found

        monkeypatch.setattr(LoadFuture, "cancel", noted)
        return begun, running(loader.close)

    def test_while_it_reads(self, files, model, brake, monkeypatch):
        """What is under way and what is queued is cancelled, and over when `close` returns."""
        loader, old = fa.Loader(model), values(model)
        futures = [loader.load_async(files[seed]) for seed in (1, 2, 1)]
        assert brake.reached.wait(LONG)
        begun, closing = self.closing(loader, monkeypatch)
        with closing:
            assert begun.wait(LONG)
            with pytest.raises(RuntimeError, match="closed"):
                loader.load_async(files[1])
            brake.may_go.set()
        assert [future.done() for future in futures] == [True] * 3
        assert [future.cancelled() for future in futures] == [True] * 3
        assert values(model) == old
        assert background_threads() == []

    def test_while_variables_change(self, files, contents, model, monkeypatch):
        """That is waited for."""
        lock = Lock()
        lock.may_leave.clear()
        loader = together(model, lock)
        future = loader.load_async(files[1])
        assert lock.leaving.wait(LONG)
        begun, closing = self.closing(loader, monkeypatch)
        with closing as thread:
            assert begun.wait(LONG)
            assert thread.is_alive()
            lock.may_leave.set()
        assert future.result(0).assigned == 6
        assert values(model) == contents[1]

    def test_while_another_thread_loads(self, files, contents, model, brake):
        loader = fa.Loader(model)
        with running(lambda: loader.load(files[1])):
            assert brake.reached.wait(LONG)
            with running(loader.close):
                brake.may_go.set()
        assert values(model) == contents[1]
        with pytest.raises(RuntimeError, match="closed"):
            loader.load(files[1])

    def test_by_several_at_once(self, files, model, brake):
        loader = fa.Loader(model)
        future = loader.load_async(files[1])
        assert brake.reached.wait(LONG)
        with running(loader.close), running(loader.close), running(loader.close):
            brake.may_go.set()
        assert future.done()
        assert background_threads() == []

    def test_in_a_callback(self, files, model):
        loader, errors, over = fa.Loader(model), [], threading.Event()

        def close(_):
            try:
                loader.close()
            except RuntimeError as error:
                errors.append(error)
            over.set()

        future = loader.load_async(files[1])
        future.add_done_callback(close)
        assert over.wait(LONG)
        assert errors == []
        for thread in background_threads():
            thread.join(LONG)
        assert background_threads() == []
        gc.collect()
        assert plans_of(files[1]) == []

    @pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
    def test_nothing_stays(self, suffix, model, tmp_path):
        """No thread, no open file (a compressed archive is unpacked into one), no plan."""
        path = tmp_path / f"m.{suffix}"
        d.save(d.fresh(dense), path)
        if suffix == "keras":
            compress(path)

        def use():
            with fa.Loader(model) as loader:
                loader.load(path)
                loader.load(path)
                loader.load_async(path).result(LONG)
                assert plans_of(path)

        use()
        gc.collect()
        before, names = sorted(os.listdir("/proc/self/fd")), functions()
        use()
        assert background_threads() == []
        gc.collect()
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert plans_of(path) == []
        assert functions() == names

    def test_files_are_not_held_open_between_loads(self, files, model):
        with fa.Loader(model) as loader:
            for seed in (1, 2, 1):
                loader.load(files[seed])
                loader.load_async(files[seed]).result(LONG)
                gc.collect()
                opened = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if exists(n)]
                assert not [path for path in opened if path.endswith(".weights.h5")]

    @pytest.mark.parametrize(
        "k",
        [
            keras,
            tf_keras,
        ],
        ids=["keras", "tf_keras"],
    )
    def test_a_model_and_its_loader_that_are_dropped(self, k, tmp_path):
        paths = [d.saved(lambda: dense(k), tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        model = d.fresh(lambda: dense(k))
        loader = fa.Loader(model)
        loader.load(paths[0])
        loader.load_async(paths[1]).result(LONG)
        dead, threads = weakref.ref(model), background_threads()
        del loader, model
        gc.collect()
        for thread in threads:
            thread.join(LONG)
        gc.collect()
        assert dead() is None

    def test_a_loader_that_is_dropped(self, files, model):
        """Though nobody closed it."""
        loader = fa.Loader(model)
        loader.load(files[1])
        loader.load_async(files[2]).result(LONG)
        dead, threads = weakref.ref(loader), background_threads()
        del loader
        gc.collect()
        for thread in threads:
            thread.join(LONG)
        gc.collect()
        assert dead() is None
        assert background_threads() == []
        assert plans_of(files[1]) == []

    def test_a_loader_that_is_dropped_with_loads_to_do(self, files, contents, model, brake):
        """They are done all the same."""
        loader = fa.Loader(model)
        futures = [loader.load_async(files[seed]) for seed in (1, 2)]
        dead, threads = weakref.ref(loader), background_threads()
        del loader
        brake.may_go.set()
        assert [future.result(LONG).assigned for future in futures] == [6, 6]
        assert values(model) == contents[2]
        gc.collect()
        for thread in threads:
            thread.join(LONG)
        assert dead() is None


def functions():
    """Return the names of the functions that loaders made."""
    return [name for name in context.context().list_function_names() if name.startswith("__fastassign")]


def exists(number):
    return os.path.lexists(f"/proc/self/fd/{number}")


def plans_of(path):
    """Return the plans for a file, or one beside it, that are still in memory."""
    plans = [each for each in gc.get_objects() if type(each) is Plan]
    return [plan for plan in plans if os.path.dirname(plan.origin.path) == os.path.dirname(path)]


# What a model does between loads.


class TestTraining:
    @BOTH
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_steps_between_loads(self, k, optimizer, tmp_path):
        """Each load is exact, each step is that of a model which stock loaded, and nobody else's memory changes."""

        def build():
            return models.compiled(k, dense(k), optimizer)

        rng = np.random.default_rng(0)
        x, y = rng.random((8, 4)).astype("f4"), rng.random((8, 3)).astype("f4")

        def state(model):
            return [d.value_of(variable).tobytes() for variable in (*model.weights, *model.optimizer.variables)]

        model, stock = d.twins(build)
        model.run_eagerly = stock.run_eagerly = optimizer == "sgd"
        paths, held = [], []
        for steps in (1, 2):
            stock.train_on_batch(x, y)
            paths.append(d.save(stock, tmp_path / f"{steps}.weights.h5"))
        with fa.Loader(model) as loader:
            for turn in range(5):
                (in_background(loader) if turn % 2 else loader.load)(paths[turn % 2])
                stock.load_weights(paths[turn % 2])
                assert state(model) == state(stock)
                held.append([(tf.identity(weight), d.value_of(weight).tobytes()) for weight in model.weights])
                for each in (model, stock):
                    each.train_on_batch(x, y)
                assert state(model) == state(stock)
                assert state(model)[: len(held[-1])] != [then for _, then in held[-1]]
        assert all(tensor.numpy().tobytes() == then for pairs in held for tensor, then in pairs)

    @BOTH
    def test_variables_of_a_strategy(self, k, tmp_path):
        """Each replica has the values."""
        paths = [d.saved(lambda: models.sequential(k), tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        strategy, stock = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), models.sequential(k)
        with strategy.scope():
            model = models.sequential(k)
        with fa.Loader(model) as loader:
            for turn in range(4):
                (in_background(loader) if turn % 2 else loader.load)(paths[turn // 2])
                stock.load_weights(paths[turn // 2])
                for weight, expected in zip(model.weights, stock.weights, strict=True):
                    for replica in getattr(weight, "_value", weight).values:
                        assert replica.numpy().tobytes() == d.value_of(expected).tobytes()

    @BOTH
    def test_functions_are_not_traced_again(self, k, tmp_path):
        paths = [d.saved(lambda: dense(k), tmp_path / f"{seed}.weights.h5", seed) for seed in (1, 2)]
        model, stock = d.twins(lambda: dense(k))
        call, x = tf.function(model), np.ones((1, 4), "f4")
        call(x)
        with fa.Loader(model) as loader:
            for turn in range(4):
                compare(loader, model, stock, paths[turn % 2])
                np.testing.assert_allclose(call(x), stock(x), rtol=1e-6)
        assert call.experimental_get_tracing_count() == 1

    def test_loads_inside_a_graph(self, files, contents, model):
        """Of eager variables: nothing is added to it."""
        with fa.Loader(model) as loader:
            for seed in (1, 2, 1):
                with tf.Graph().as_default() as graph:
                    loader.load(files[seed])
                    assert graph.get_operations() == []
                assert values(model) == contents[seed]


# Arguments and options.


class TestArguments:
    def test_a_budget_that_only_streaming_keeps(self, files, tmp_path):
        model, source = d.twins(wide)
        path = d.save(d.fill(source, 1), tmp_path / "wide.weights.h5")
        old, new = values(model), values(source)
        with fa.Loader(model, options=fa.LoadOptions(max_staging_bytes=8192)) as loader:
            for _ in range(2):
                with pytest.raises(fa.Budget) as caught:
                    loader.load_async(path).result(LONG)
                assert caught.value.file == str(path)
                assert values(model) == old
                assert loader.load(path).assigned == 6
                assert values(model) == new
                d.perturb(model, 0.5)
                old = values(model)
        together = fa.LoadOptions(max_staging_bytes=8192, swap="together")
        with fa.Loader(model, options=together) as loader, pytest.raises(fa.Budget):
            loader.load(path)
        assert values(model) == old

    @BOTH
    def test_by_name(self, k, tmp_path):
        source = models.chain(k, 5, 4, names=["a", "z"])
        paths = [d.save(d.fill(source, seed), tmp_path / f"{seed}.h5") for seed in (1, 2)]
        model, stock = d.twins(lambda: models.chain(k, 5, 4, names=["a", "b"]))
        with fa.Loader(model, by_name=True) as loader:
            reports = [compare(loader, model, stock, paths[i], by_name=True) for i in (0, 1, 0)]
        assert [(report.assigned, report.plan) for report in reports] == [(2, MADE), (2, KEPT), (2, KEPT)]

    def test_objects_to_skip(self, files, model):
        stock = d.fresh(dense)
        with fa.Loader(model, objects_to_skip=iter([model.layers[1]])) as loader:
            for seed in (1, 2, 1):
                compare(loader, model, stock, files[seed], objects_to_skip=[stock.layers[1]])
                assert (np.asarray(model.layers[1].kernel) == 0.25).all()

    def test_skip_mismatch(self, files, model):
        """What does not fit is left alone, with stock's warnings, at every load."""
        stock, before = d.fresh(dense), None
        with fa.Loader(model, skip_mismatch=True) as loader:
            for load in (loader.load, loader.load, in_background(loader)):
                d.perturb(model, 0.25)
                d.perturb(stock, 0.25)
                theirs = d.stock_load(stock, files["bad"], skip_mismatch=True)
                ours = d.observe(lambda load=load: load(files["bad"]))
                assert ours.error is None
                d.same_warnings(theirs, ours)
                assert theirs.warned
                assert values(model) == values(stock)
                assert before in (None, ours.result.skipped)
                before = ours.result.skipped
            assert ours.result.plan == KEPT

    def test_warnings_point_at_the_caller(self, files, model):
        with fa.Loader(model, skip_mismatch=True) as loader:
            for _ in range(2):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    line = sys._getframe().f_lineno + 1
                    loader.load(files["bad"])
                ours = [warning for warning in caught if "could not be loaded" in str(warning.message)]
                assert [(warning.filename, warning.lineno) for warning in ours] == [(__file__, line)]

    @pytest.mark.parametrize("background", [False, True], ids=["load", "load_async"])
    def test_a_file_that_changes_when_all_was_read(self, background, files, contents, model, copy):
        """The values are those that were there: a publisher may write the next ones."""
        lock = Lock()
        lock.may_leave.clear()
        with together(model, lock) as loader:
            future = loader.load_async(copy)
            assert lock.leaving.wait(LONG)
            os.utime(copy, ns=(1, 1))
            lock.may_leave.set()
            assert future.result(LONG).assigned == 6
        assert values(model) == contents[1]

    @pytest.mark.parametrize("method", ["load", "close"])
    @pytest.mark.parametrize("background", [False, True], ids=["load", "load_async"])
    def test_a_callback_that_comes_back(self, method, background, files, contents, model):
        """It would wait for itself."""
        calls = []

        def again(*_):
            with pytest.raises(RuntimeError, match="from a callback of its own load"):
                loader.load(files[2]) if method == "load" else loader.close()
            calls.append(threading.current_thread())

        with fa.Loader(model) as loader:
            if background:
                future = loader.load_async(files[1])
                future.__class__ = type("Telling", (LoadFuture,), {"progress": property(lambda _: None, again)})
                future.result(LONG)
            else:
                loader.load(files[1], progress=again)
            assert calls
            assert values(model) == contents[1]
            loader.load(files[2])
        assert values(model) == contents[2]

    def test_its_own_lock_may_be_held_around_a_load(self, files, contents, model):
        with fa.Loader(model, options=TOGETHER) as loader, loader.lock:
            loader.load(files[1])
        assert values(model) == contents[1]

    def test_progress(self, files, model):
        events = []
        with fa.Loader(model) as loader:
            for _ in range(2):
                loader.load(files[1], progress=events.append)
                found, events = events, []
                # All are assigned by one call.
                assert [event.variable for event in found] == [model.variables[-1].path]
                assert (found[-1].done_bytes, found[-1].done_variables) == (found[-1].total_bytes, 6)
            loader.load(files[1])
            loader.load(files[1], progress=True)
            assert events == []

    def test_progress_of_several_batches(self, tmp_path, monkeypatch):
        monkeypatch.setattr(batches, "BATCH_BYTES", 10_000)
        model, path = d.fresh(wide), tmp_path / "w.weights.h5"
        model.save_weights(path)
        events = []
        with fa.Loader(model) as loader:
            loader.load(path, progress=events.append)
        assert [event.done_variables for event in events] == [1, 2, 3, 4, 5, 6]
        assert [event.variable for event in events] == [variable.path for variable in model.variables]

    def test_no_model(self):
        for what in (None, 3, "model", keras.losses):
            with pytest.raises(TypeError, match="must be a Keras"):
                fa.Loader(what)

    def test_an_unknown_swap(self):
        with pytest.raises(ValueError, match="swap must be"):
            fa.LoadOptions(swap="never")

    @BOTH
    def test_a_model_that_is_not_built(self, k, files, tmp_path):
        """It may be built after the loader was made."""
        model, stock = models.subclassed(k, "a", build=False), models.subclassed(k, "a")
        path = d.saved(lambda: models.subclassed(k, "a"), tmp_path / "m.weights.h5")
        with fa.Loader(model) as loader:
            with pytest.raises(ValueError, match=r"built|create"):
                loader.load(path)
            model(np.zeros((1, 4), "f4"))
            assert compare(loader, model, stock, path).plan == MADE
            assert compare(loader, model, stock, path).plan == KEPT


# TensorFlow 1.


class TestGraphs:
    @pytest.fixture
    def paths(self, tmp_path):
        return [d.saved(lambda: dense(tf_keras), tmp_path / f"{seed}.h5", seed) for seed in (1, 2)]

    @pytest.fixture
    def expected(self, paths):
        stock = dense(tf_keras)
        found = []
        for path in paths:
            stock.load_weights(path)
            found.append([weight.numpy().tobytes() for weight in stock.weights])
        return found

    @pytest.mark.parametrize("swap", ["each", "together"])
    def test_loads_and_ops(self, swap, paths, expected):
        """The ops are made once."""
        with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
            model = dense(tf_keras)
            with fa.Loader(model, options=fa.LoadOptions(swap=swap)) as loader:
                count, remarks = None, []
                for turn in range(6):
                    load = in_background(loader) if turn % 2 else loader.load
                    remarks.append(load(paths[turn % 3 % 2]).plan)
                    assert fetch(session, model) == expected[turn % 3 % 2]
                    assert count in (None, len(graph.get_operations()))
                    count = len(graph.get_operations())
            assert remarks == [MADE, *[KEPT] * 5]

    def test_a_session_that_is_given(self, paths, expected):
        graph = tf.Graph()
        with graph.as_default():
            model = dense(tf_keras)
        with tf.compat.v1.Session(graph=graph) as given, tf.compat.v1.Session(graph=graph) as other:
            other.run([weight.initializer for weight in model.weights])
            before = fetch(other, model)
            with fa.Loader(model, session=given) as loader:
                for load in (loader.load, in_background(loader), loader.load):
                    load(paths[0])
                    assert fetch(given, model) == expected[0]
                    assert fetch(other, model) == before

    def test_the_default_session_is_the_caller_s(self, paths, expected):
        """Not that of the load before, and not one of the thread that loads."""
        graph = tf.Graph()
        with graph.as_default():
            model = dense(tf_keras)
        with fa.Loader(model) as loader:
            for background in (False, True, True, False):
                with tf.compat.v1.Session(graph=graph) as session:
                    for path, new in zip(paths, expected, strict=True):
                        (in_background(loader) if background else loader.load)(path)
                        assert fetch(session, model) == new

    def test_the_session_of_tf_keras(self, paths, expected):
        """It has one for each thread: this one's is meant."""
        with tf.Graph().as_default():
            model = dense(tf_keras)
            with fa.Loader(model) as loader:
                for path, new in zip(paths, expected, strict=True):
                    loader.load_async(path).result(LONG)
                    assert fetch(backend.get_session(), model) == new

    def test_no_session(self, paths, expected):
        """The error comes with the result, and the loader works afterwards."""
        graph = tf.Graph()
        with graph.as_default():
            variables = {"a/a/kernel:0": tf.compat.v1.get_variable("kernel", (4, 5), use_resource=True)}
        with fa.Loader(variables) as loader:
            for load in (loader.load, in_background(loader)):
                with pytest.raises(fa.FastAssignError, match="no session was given"):
                    load(paths[0])
            with tf.compat.v1.Session(graph=graph) as session:
                for path, new in zip(paths, expected, strict=True):
                    loader.load(path)
                    assert session.run(variables["a/a/kernel:0"]).tobytes() == new[0]


def fetch(session, model):
    return [array.tobytes() for array in session.run(model.weights)]


# Memory.

CHILD = """
import gc, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
import fastassign as fa

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))

paths, sizes = sys.argv[1:3], json.loads(sys.argv[3])
layers = [keras.layers.Dense(n, use_bias=False, kernel_initializer="zeros") for n in sizes[1:]]
model = keras.Sequential([keras.Input((sizes[0],)), *layers])
loader = fa.Loader(model)
figures = {}
for how in ("load", "load_async"):
    for turn in range(10):
        if turn == 2:
            gc.collect()
            before = status("VmRSS")
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the high-water mark begins anew
        path = paths[turn % 2]
        report = loader.load(path) if how == "load" else loader.load_async(path).result()
        arrays = [v.numpy().reshape(-1) for v in model.variables]
        assert all(set(array[::997].tolist()) == {1 + turn % 2} for array in arrays)
        del arrays
    figures[how] = status("VmHWM") - before
figures["bytes"] = report.nbytes
print(json.dumps(figures), flush=True)
loader.load_async(paths[0])  # the process ends while it runs
"""


def test_ten_loads_take_no_more_memory_than_two(tmp_path):
    """100 MB, in a process of its own, which ends while a load is under way."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not reset the high-water mark of memory")
    sizes, paths = [2048, 2048, 4096, 2048, 1024], [tmp_path / f"{n}.weights.h5" for n in (1, 2)]
    for value, path in enumerate(paths, 1):
        with h5py.File(path, "w") as file:
            file.create_group("vars")
            for i, shape in enumerate(itertools.pairwise(sizes)):
                file[f"layers/dense{f'_{i}' if i else ''}/vars/0"] = np.full(shape, value, "f4")
    try:
        command = [sys.executable, "-c", CHILD, *map(str, paths), json.dumps(sizes)]
        child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        for path in paths:
            path.unlink()
    assert child.returncode == 0, child.stderr[-3000:]
    assert "Exception ignored" not in child.stderr
    figures = json.loads(child.stdout.splitlines()[-1])
    assert figures["bytes"] > 80 << 20
    window = fa.LoadOptions().window_bytes
    assert figures["load"] < figures["bytes"] + window, figures
    assert figures["load_async"] < figures["bytes"] + window, figures
