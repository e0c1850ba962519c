"""A file of another structure, or one that changed: the plan of the load before is never stale."""

import gc
import os
import struct

import h5py
import numpy as np
import pytest
import tensorflow as tf

import fastassign as fa
from support import attacks
from support import differential as d
from support.loading import (
    AGAIN,
    KEPT,
    LONG,
    MADE,
    OTHER_STRUCTURE,
    compare,
    dense,
    functions,
    in_background,
    running,
    values,
)


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
