"""``.keras`` archives: the place of the weights in them, and damaged or hostile archives."""

import os
import struct
import tempfile
import zipfile

import h5py
import keras
import numpy as np
import pytest

import fastassign as fa
from fastassign.catalog import archive
from fastassign.catalog.file import WeightFile
from support import attacks

MEMBER = archive.MEMBER


def dense():
    keras.backend.clear_session(free_memory=False)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")])


def values(model):
    return [variable.numpy().tobytes() for variable in model.variables]


EXPECTED = [attacks.KERNEL.tobytes(), attacks.BIAS.tobytes()]


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "inner.h5"
    with attacks.write(path) as file:
        file.create_dataset("chunked", data=np.arange(300.0), chunks=(7,), compression="gzip")
    return path.read_bytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.keras"


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def pack(path, weights, *, method=zipfile.ZIP_STORED, name=MEMBER, before=(), mode="w", **how):
    with zipfile.ZipFile(path, mode, **how) as file:
        for other, content in before:
            file.writestr(other, content)
        info = zipfile.ZipInfo(name)
        info.compress_type = method
        file.writestr(info, weights)
        file.writestr("config.json", "{}")


def open_files():
    return len(os.listdir("/proc/self/fd"))


class TestStored:
    @pytest.mark.parametrize("length", range(0, 16, 3))
    def test_at_any_offset(self, path, weights, length):
        pack(path, weights, before=[("metadata.json", b"x" * (1000 + length))])
        with WeightFile(path) as file:
            start, size = archive.locate(file)
            assert file.read(start, size) == weights
        model = dense()
        report = fa.load_weights(model, path)
        assert values(model) == EXPECTED
        assert report.routes == {"arena": 2}
        np.testing.assert_array_equal(fa.inspect(path)["chunked"].read(), np.arange(300.0))

    def test_an_extra_field_and_a_comment(self, path, weights):
        with zipfile.ZipFile(path, "w") as file:
            info = zipfile.ZipInfo(MEMBER)
            info.extra = struct.pack("<HH5s", 0x7777, 5, b"extra")
            info.comment = b"a member"
            file.writestr(info, weights)
            file.comment = b"an archive" * 1000
        model = dense()
        fa.load_weights(model, path)
        assert values(model) == EXPECTED

    def test_sizes_of_64_bits(self, path, weights):
        with zipfile.ZipFile(path, "w") as file, file.open(MEMBER, "w", force_zip64=True) as member:
            member.write(weights)
        model = dense()
        fa.load_weights(model, path)
        assert values(model) == EXPECTED

    def test_other_bytes_before_the_archive(self, path, weights):
        pack(path, weights)
        path.write_bytes(b"#!/bin/sh\n" * 99 + path.read_bytes())
        stock, model = dense(), dense()
        stock.load_weights(path)
        assert values(stock) == EXPECTED
        fa.load_weights(model, path)
        assert values(model) == EXPECTED

    def test_an_archive_of_keras(self, path):
        model, other = dense(), dense()
        model.save(path)
        report = fa.load_weights(other, path)
        assert values(model) == values(other)
        assert report.missing == ()


class TestInflated:
    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_loads_and_leaves_nothing(self, path, weights, method):
        pack(path, weights, method=method)
        before = open_files()
        model = dense()
        report = fa.load_weights(model, path)
        assert values(model) == EXPECTED
        assert not report.index_cached
        catalog = fa.inspect(path)
        np.testing.assert_array_equal(catalog["chunked"].read(), np.arange(300.0))
        assert catalog["chunked"].record.encoding == "h5py"
        del catalog
        assert open_files() == before

    def test_datasets_that_h5py_decodes(self, path, tmp_path):
        inner = tmp_path / "inner.h5"
        with attacks.write(inner, kernel=None, bias=None, libver="latest") as file:
            group = file[attacks.VARS]
            group.create_dataset("0", data=attacks.KERNEL, chunks=(3, 2), compression="gzip", shuffle=True)
            group["1"] = attacks.BIAS.astype(">f4")
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            pack(path, inner.read_bytes(), method=method)
            model = dense()
            fa.load_weights(model, path)
            assert values(model) == EXPECTED

    def test_a_plan_outlives_the_archive(self, path, weights):
        pack(path, weights, method=zipfile.ZIP_DEFLATED)
        before = open_files()
        model = dense()
        plan = fa.plan(model, path)
        path.unlink()
        plan.execute()
        assert values(model) == EXPECTED
        del plan, model
        import gc

        gc.collect()
        assert open_files() == before

    def test_more_than_the_budget_is_refused_before_it_is_unpacked(self, path, weights, monkeypatch):
        pack(path, weights, method=zipfile.ZIP_DEFLATED)
        monkeypatch.setattr(archive, "_pieces", None)
        limit = len(weights) - 1
        with pytest.raises(fa.Refused, match=f"more than the {limit} allowed") as caught:
            fa.load_weights(dense(), path, options=fa.LoadOptions(max_staging_bytes=limit))
        assert caught.value.rule == "archive-size"
        assert caught.value.option == "LoadOptions(max_staging_bytes=...)"
        assert caught.value.file == str(path)

    def test_a_member_that_inflates_to_more_than_it_declares(self, path):
        """Both headers lie about the size; no more than that size is written."""
        content = bytes(1 << 20)
        pack(path, content, method=zipfile.ZIP_DEFLATED)
        attacks.patch(path, struct.pack("<I", len(content)), struct.pack("<I", 5000), count=2)
        with pytest.raises((fa.Malformed, fa.Refused)) as caught:
            fa.inspect(path)
        assert caught.value.file == str(path)

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_damaged_data(self, path, weights, method):
        pack(path, weights, method=method)
        with zipfile.ZipFile(path) as file:
            info = file.getinfo(MEMBER)
        content = bytearray(path.read_bytes())
        start = info.header_offset + 30 + len(MEMBER)
        for position in range(start + info.compress_size // 2, start + info.compress_size, 3):
            content[position] ^= 0xA5
        path.write_bytes(content)
        before = open_files()
        model = dense()
        old = values(model)
        with pytest.raises(fa.Malformed) as caught:
            fa.load_weights(model, path)
        assert caught.value.file == str(path)
        assert values(model) == old
        assert open_files() == before

    def test_a_member_that_is_not_hdf5(self, path):
        pack(path, b"not HDF5" * 100, method=zipfile.ZIP_DEFLATED)
        before = open_files()
        with pytest.raises(fa.Malformed, match="file signature not found"):
            fa.inspect(path)
        assert open_files() == before


class TestWrong:
    def test_no_member(self, path):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("config.json", "{}")
        with pytest.raises(fa.Malformed) as caught:
            fa.load_weights(dense(), path)
        with pytest.raises(KeyError) as stock, zipfile.ZipFile(path) as file:
            file.open(MEMBER)
        assert str(caught.value) == stock.value.args[0]
        assert caught.value.file == str(path)

    def test_two_members_of_the_same_name(self, path, weights):
        pack(path, weights)
        with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr(MEMBER, b"x" * 10)
        with pytest.raises(fa.Refused, match="named twice") as caught:
            fa.load_weights(dense(), path)
        assert (caught.value.rule, caught.value.option) == ("archive-member", None)
        assert caught.value.file == str(path)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_encrypted(self, path, weights, method):
        pack(path, weights, method=method)
        content = bytearray(path.read_bytes())
        for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.find(signature) + flags] |= 1
        path.write_bytes(content)
        with pytest.raises(fa.Refused, match="encrypted"):
            fa.inspect(path)

    def test_a_symbolic_link(self, path):
        with zipfile.ZipFile(path, "w") as file:
            info = zipfile.ZipInfo(MEMBER)
            info.external_attr = 0o120777 << 16
            file.writestr(info, "/etc/passwd")
        with pytest.raises(fa.Refused, match="a symbolic link"):
            fa.inspect(path)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_cut_anywhere(self, path, weights, method):
        pack(path, weights, method=method)
        content = path.read_bytes()
        model = dense()
        old = values(model)
        for length in {1, 3, 4, 10, 30, 50, len(content) // 2, len(content) - 30, len(content) - 1}:
            path.write_bytes(content[:length])
            with pytest.raises((fa.Malformed, fa.Truncated)) as caught:
                fa.load_weights(model, path)
            assert caught.value.file == str(path)
        assert values(model) == old

    @pytest.mark.parametrize("size", [(1 << 31), (1 << 32) - 2])
    def test_a_member_past_the_end(self, path, weights, size):
        pack(path, weights)
        attacks.patch(path, struct.pack("<II", len(weights), len(weights)), struct.pack("<II", size, size), count=2)
        with pytest.raises((fa.Truncated, fa.Malformed)) as caught:
            fa.inspect(path)
        assert caught.value.file == str(path)

    def test_stored_with_two_sizes(self, path, weights):
        pack(path, weights)
        size = len(weights)
        attacks.patch(path, struct.pack("<II", size, size), struct.pack("<II", size, size - 1), count=2)
        with pytest.raises(fa.Malformed, match="two sizes"):
            fa.inspect(path)

    @pytest.mark.parametrize("by_name", [".h5", ".weights.h5", ".hdf5"])
    def test_an_archive_that_is_called_an_hdf5_file(self, tmp_path, weights, by_name):
        path = tmp_path / f"model{by_name}"
        pack(path, weights)
        with pytest.raises(OSError) as stock:
            h5py.File(path)
        with pytest.raises(fa.Malformed) as caught:
            fa.inspect(path)
        assert str(caught.value) == str(stock.value)

    def test_an_hdf5_file_that_is_called_an_archive(self, path, weights):
        path.write_bytes(weights)
        assert len(fa.inspect(path)) == 3

    def test_a_random_mutation_is_never_another_kind_of_error(self, path, weights):
        """With any bytes in its headers an archive is indexed safely, or raises a documented error."""
        pack(path, weights, before=[("metadata.json", b"{}")])
        content = path.read_bytes()
        with zipfile.ZipFile(path) as file:
            info = file.getinfo(MEMBER)
            central = file.start_dir
        places = [*range(info.header_offset, info.header_offset + 30), *range(central, len(content))]
        rng = np.random.default_rng(3)
        outcomes, files = set(), set()
        for _ in range(400):
            mutated = bytearray(content)
            for place in rng.choice(places, rng.integers(1, 4)):
                mutated[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
            path.write_bytes(mutated)
            try:
                catalog = fa.inspect(path, options=fa.LoadOptions(index_cache=False))
            except fa.FastAssignError as error:
                outcomes.add(type(error).__name__)
                files.add(error.file)
            else:
                outcomes.add("")
                for record in catalog.contents.records.values():
                    assert all(0 <= e.offset <= len(mutated) - e.nbytes for e in record.extents)
        assert {"", "Malformed"} <= outcomes <= {"", "Malformed", "Refused", "Truncated"}
        assert files == {str(path)}
