"""A file without its tensors: every byte of it counts, and no byte of a tensor does."""

import gc
import os
import zipfile
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import fastassign as fa
from fastassign.catalog.archive import MEMBER
from fastassign.catalog.indexing import open_catalog
from fastassign.errors import NotAFile, NotFound
from fastassign.loader import fingerprint as module
from fastassign.loader.fingerprint import Fingerprint
from support import attacks
from support.profiles import cases

EXAMPLES = cases(40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def plain(path):
    """What Keras writes, one tensor without elements and one of a single byte."""
    with attacks.write(path) as file:
        file["empty"] = np.zeros((0, 3), "f4")
        file["byte"] = np.uint8(7)


def legacy(path):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"dense"]
        group = file.create_group("dense")
        group.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        group["dense/kernel:0"] = attacks.KERNEL
        group["dense/bias:0"] = attacks.BIAS


def chunked(path):
    """One tensor as it is, one in pieces that only h5py finds."""
    with attacks.write(path, bias=None) as file:
        file.create_dataset(attacks.BIAS_KEY, data=attacks.BIAS, chunks=(2,), compression="gzip")


def newest(path):
    attacks.write(path, libver="latest").close()


def user_block(path):
    attacks.write(path, userblock_size=512).close()


def archive(path, *, config="{}", compression=zipfile.ZIP_STORED):
    """A ``.keras`` file with something before the weights and something behind them."""
    inner = path.with_suffix(".inner")
    plain(inner)
    with zipfile.ZipFile(path, "w", compression) as outer:
        outer.writestr("config.json", config)
        outer.write(inner, MEMBER)
        outer.writestr("after.json", "{}")
    inner.unlink()


FILES = {
    "plain": (plain, "x.weights.h5"),
    "legacy": (legacy, "x.h5"),
    "chunked": (chunked, "x.weights.h5"),
    "newest": (newest, "x.weights.h5"),
    "user-block": (user_block, "x.weights.h5"),
    "archive": (archive, "x.keras"),
}
EVERY_FILE = pytest.mark.parametrize("kind", FILES)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """A file of every kind, its catalog and its skeleton."""
    found = {}
    for kind, (build, name) in FILES.items():
        path = tmp_path_factory.mktemp(kind) / name
        build(path)
        catalog = index(path)
        found[kind] = path, catalog, Fingerprint(catalog)
    return found


@pytest.fixture
def case(cases, tmp_path):
    """A copy of the plain file, the catalog and the skeleton of the copy."""
    path = tmp_path / "y.weights.h5"
    path.write_bytes(cases["plain"][0].read_bytes())
    catalog = index(path)
    return path, catalog, Fingerprint(catalog)


def index(path):
    return open_catalog(path, use_cache=False)


def positions(catalog):
    """Return the bytes of the HDF5 data that belong to tensors, and the others."""
    extents = [extent for record in catalog.contents.records.values() for extent in record.extents]
    inside = {position for start, length in extents for position in range(start, start + length)}
    whole = range(catalog.index.base, catalog.index.base + catalog.index.size)
    return sorted(inside), [position for position in whole if position not in inside]


def changed(path, masks):
    """Write a copy in which some bytes are others; return its path."""
    content = bytearray(path.read_bytes())
    for position, mask in masks.items():
        content[position] ^= mask
    copy = path.with_name("copy-" + path.name)
    copy.write_bytes(content)
    return copy


def values(catalog):
    return {key: entry.read().tobytes() for key, entry in catalog.items()}


class TestEveryByte:
    @EVERY_FILE
    def test_the_same_file(self, cases, kind):
        path, catalog, fingerprint = cases[kind]
        found = fingerprint.reopen(path)
        assert fingerprint.is_known
        assert found.contents == catalog.contents
        assert (found.path, found.identity) == (path, catalog.identity)
        assert values(found) == values(catalog)

    @EVERY_FILE
    def test_outside_the_tensors_all_count(self, cases, kind):
        """Those at both ends and next to tensors, and every 37th in between."""
        path, catalog, fingerprint = cases[kind]
        inside, outside = positions(catalog)
        assert len(outside) > 500
        edges = {position + step for position in inside for step in (-1, 1)} & set(outside)
        for position in {*outside[:256], *outside[-256:], *outside[::37], *edges}:
            assert fingerprint.reopen(changed(path, {position: 1})) is None, position

    @EVERY_FILE
    def test_inside_the_tensors_none_counts(self, cases, kind):
        path, catalog, fingerprint = cases[kind]
        inside, _ = positions(catalog)
        assert inside
        for position in inside:
            assert fingerprint.reopen(changed(path, {position: 255})) is not None, position

    @EVERY_FILE
    @given(data=st.data())
    @EXAMPLES
    def test_some_bytes_to_something(self, cases, kind, data):
        path, catalog, fingerprint = cases[kind]
        inside, outside = positions(catalog)
        places = data.draw(st.sets(st.sampled_from(inside), max_size=4))
        if data.draw(st.booleans()):
            places |= data.draw(st.sets(st.sampled_from(outside), min_size=1, max_size=2))
        masks = {place: data.draw(st.integers(1, 255)) for place in sorted(places)}
        copy = changed(path, masks)
        found = fingerprint.reopen(copy)
        assert (found is None) == bool(places - set(inside))
        if found is None:
            return
        content, old = copy.read_bytes(), values(catalog)
        for key, new in values(found).items():
            record = found[key].record
            touched = any(start <= place < start + length for start, length in record.extents for place in places)
            assert (new != old[key]) == touched, key
            assert not record.extents or new == b"".join(content[start : start + n] for start, n in record.extents)


class TestOtherFiles:
    @pytest.mark.parametrize("tail", [b"\0", b"garbage" * 1000])
    def test_one_that_grew(self, case, tail):
        path, _, fingerprint = case
        path.write_bytes(path.read_bytes() + tail)
        assert fingerprint.reopen(path) is None

    @pytest.mark.parametrize("length", [0, 1, 7, 100, 0.5, -1])
    def test_one_that_was_cut(self, case, length):
        path, _, fingerprint = case
        size = path.stat().st_size
        os.truncate(path, length + size if length < 0 else int(length * size) if isinstance(length, float) else length)
        assert fingerprint.reopen(path) is None

    def test_one_that_is_cut_while_it_is_compared(self, case, monkeypatch):
        path, _, fingerprint = case
        preadv, size = os.preadv, path.stat().st_size

        def cutting(*arguments):
            os.truncate(path, size - 1)
            return preadv(*arguments)

        monkeypatch.setattr(os, "preadv", cutting)
        assert fingerprint.reopen(path) is None

    def test_one_that_is_written_to_while_it_is_compared(self, case, monkeypatch):
        path, catalog, fingerprint = case
        preadv, last = os.preadv, catalog["byte"].record.extents[0].offset

        def writing(*arguments):
            content = preadv(*arguments)
            with path.open("r+b") as file:
                file.seek(last)
                file.write(b"!")
            os.utime(path, ns=(1, 1))
            return content

        monkeypatch.setattr(os, "preadv", writing)
        assert fingerprint.reopen(path) is None

    def test_another_model(self, case, tmp_path):
        _, _, fingerprint = case
        legacy(tmp_path / "z.weights.h5")
        assert fingerprint.reopen(tmp_path / "z.weights.h5") is None

    def test_not_hdf5_at_all(self, case, tmp_path):
        path, _, fingerprint = case
        (tmp_path / "z.weights.h5").write_bytes(os.urandom(path.stat().st_size))
        assert fingerprint.reopen(tmp_path / "z.weights.h5") is None

    def test_none(self, case, tmp_path):
        _, _, fingerprint = case
        with pytest.raises(NotFound):
            fingerprint.reopen(tmp_path / "nothing.weights.h5")
        with pytest.raises(NotAFile):
            fingerprint.reopen(tmp_path)

    def test_the_identity_is_that_of_the_file_compared(self, case, tmp_path):
        """Whoever replaces the file afterwards is noticed."""
        path, _, fingerprint = case
        found = fingerprint.reopen(path)
        (tmp_path / "new").write_bytes(path.read_bytes())
        (tmp_path / "new").replace(path)
        with pytest.raises(fa.Changed):
            found.open()


class TestArchives:
    def test_the_same_weights_elsewhere(self, cases, tmp_path):
        _, _, fingerprint = cases["archive"]
        archive(tmp_path / "x.keras", config="{ }")
        assert fingerprint.reopen(tmp_path / "x.keras") is None

    def test_another_configuration_of_the_same_length(self, cases, tmp_path):
        _, catalog, fingerprint = cases["archive"]
        archive(tmp_path / "x.keras", config="[]")
        assert values(fingerprint.reopen(tmp_path / "x.keras")) == values(catalog)

    def test_the_same_weights_without_an_archive(self, cases, tmp_path):
        path, catalog, fingerprint = cases["archive"]
        start, size = catalog.index.base, catalog.index.size
        inner = tmp_path / "x.weights.h5"
        inner.write_bytes(path.read_bytes()[start : start + size])
        assert fingerprint.reopen(inner) is None
        inner.write_bytes(bytes(start) + path.read_bytes()[start : start + size])
        assert fingerprint.reopen(inner) is None

    def test_a_damaged_directory(self, cases):
        path, _, fingerprint = cases["archive"]
        size = path.stat().st_size
        assert fingerprint.reopen(changed(path, {size - 22: 1})) is None

    def test_a_member_of_another_name(self, cases):
        path, _, fingerprint = cases["archive"]
        name = path.read_bytes().rindex(MEMBER.encode())
        assert fingerprint.reopen(changed(path, {name: 1})) is None

    def test_compressed_ones_are_not_compared(self, tmp_path):
        path = tmp_path / "x.keras"
        archive(path, compression=zipfile.ZIP_DEFLATED)
        fingerprint = Fingerprint(index(path))
        assert not fingerprint.is_known
        assert fingerprint.reopen(path) is None

    def test_a_compressed_one_after_a_stored_one(self, cases, tmp_path):
        _, _, fingerprint = cases["archive"]
        archive(tmp_path / "x.keras", compression=zipfile.ZIP_DEFLATED)
        assert fingerprint.reopen(tmp_path / "x.keras") is None


class TestShortReads:
    """The system may return less than was asked for."""

    @pytest.fixture(params=["half", "one"])
    def short(self, request):
        """Let each call return less while the fixture's context lasts."""

        @contextmanager
        def reads():
            pread, preadv = os.pread, os.preadv

            def less(length):
                return min(length, 1) if request.param == "one" else -(-length // 2)

            def read(descriptor, length, offset):
                return pread(descriptor, less(length), offset)

            def scatter(descriptor, buffers, offset):
                return preadv(descriptor, [buffers[0][: less(len(buffers[0]))]], offset)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "pread", read)
                patch.setattr(os, "preadv", scatter)
                yield

        return reads

    def assert_complete(self, path, catalog, fingerprint):
        _, outside = positions(catalog)
        for position in (*outside[::211], outside[-1]):
            assert fingerprint.reopen(changed(path, {position: 1})) is None, position

    def test_while_it_is_made(self, case, short):
        path, catalog, _ = case
        with short():
            fingerprint = Fingerprint(catalog)
        assert fingerprint.reopen(path) is not None
        self.assert_complete(path, catalog, fingerprint)

    def test_while_it_is_compared(self, case, short):
        path, catalog, fingerprint = case
        with short():
            assert fingerprint.reopen(path) is not None
            self.assert_complete(path, catalog, fingerprint)

    def test_both_times(self, case, short):
        path, catalog, _ = case
        with short():
            self.assert_complete(path, catalog, Fingerprint(catalog))

    @pytest.fixture
    def early_end(self, monkeypatch):
        preadv = os.preadv

        def read(descriptor, buffers, offset):
            return preadv(descriptor, [buffers[0][: max(0, 1000 - offset)]], offset)

        return lambda: monkeypatch.setattr(os, "preadv", read)

    def test_an_early_end_both_times(self, case, early_end):
        """Equal as far as they go is not equal."""
        _, catalog, _ = case
        early_end()
        with pytest.raises(fa.Truncated):
            Fingerprint(catalog)

    def test_an_early_end_while_it_is_compared(self, case, early_end):
        path, _, fingerprint = case
        early_end()
        assert fingerprint.reopen(path) is None


class TestMaking:
    def test_of_a_file_that_was_replaced_since(self, case, tmp_path):
        path, catalog, _ = case
        (tmp_path / "new").write_bytes(path.read_bytes())
        (tmp_path / "new").replace(path)
        with pytest.raises(fa.Changed):
            Fingerprint(catalog)

    def test_of_a_file_that_is_written_to_meanwhile(self, case, monkeypatch):
        path, catalog, _ = case
        preadv = os.preadv

        def touching(*arguments):
            os.utime(path, ns=(1, 1))
            return preadv(*arguments)

        monkeypatch.setattr(os, "preadv", touching)
        with pytest.raises(fa.Changed):
            Fingerprint(catalog)

    def test_more_than_is_worth_comparing(self, case, monkeypatch):
        path, catalog, _ = case
        _, outside = positions(catalog)
        monkeypatch.setattr(module, "_MOST_BYTES", len(outside))
        assert Fingerprint(catalog).reopen(path) is not None
        monkeypatch.setattr(module, "_MOST_BYTES", len(outside) - 1)
        fingerprint = Fingerprint(catalog)
        assert not fingerprint.is_known
        assert fingerprint.reopen(path) is None

    def test_tensors_that_overlap(self, tmp_path):
        """One inside another, and one that ends in another: what belongs to any of them does not count."""
        path = tmp_path / "x.weights.h5"
        with attacks.write(path) as file:
            for name, length in (("long", 64), ("inner", 16), ("late", 48)):
                file[name] = np.arange(length, dtype="u1")
        start = attacks.address(path, "long")
        attacks.move(path, "inner", start + 8)
        attacks.move(path, "late", start + 40)
        catalog = index(path)
        fingerprint = Fingerprint(catalog)
        inside, outside = positions(catalog)
        assert set(range(start, start + 88)) <= set(inside)
        for position in inside:
            assert fingerprint.reopen(changed(path, {position: 1})) is not None, position
        for position in outside[::41]:
            assert fingerprint.reopen(changed(path, {position: 1})) is None, position


def test_nothing_stays_open(cases, tmp_path):
    def use():
        for kind, (path, catalog, fingerprint) in cases.items():
            assert Fingerprint(catalog).reopen(path) is not None, kind
            assert fingerprint.reopen(changed(path, {catalog.index.base: 1})) is None
            with pytest.raises(NotFound):
                fingerprint.reopen(tmp_path / "nothing")

    use()
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    use()
    assert sorted(os.listdir("/proc/self/fd")) == before
