"""The index cache: the same contents as without it, and no harm from any file in its folder."""

import json
import os
import stat
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import fastassign as fa
from fastassign.catalog import index_cache
from fastassign.catalog.file import WeightFile
from support import attacks
from support.profiles import cases


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "cache" / "index"
    monkeypatch.setenv("FASTASSIGN_CACHE", str(place))
    return place


@pytest.fixture
def path(tmp_path):
    """Return a file with all kinds of objects that an index holds, old enough to be cached."""
    path = tmp_path / "model.weights.h5"
    write(path)
    return path


def write(path, value=1.0):
    with attacks.write(path, bias=attacks.BIAS * value) as file:
        file["layers/dense/vars"].attrs["name"] = "dénse"
        file.attrs["layer_names"] = ["a", "b"]
        file.create_dataset("chunked", data=np.arange(30.0) * value, chunks=(4,), compression="gzip")
        file["empty"] = np.zeros((0, 3))
        file["scalar"] = np.float32(value)
        file["refused"] = h5py.SoftLink("/empty")
        marked = file.create_dataset("marked", data=np.ones(3, "V2"))
        marked.attrs["dtype"] = "bfloat16"
    attacks.settle(path)


def entries(folder):
    return sorted(folder.glob("*")) if folder.exists() else []


def body_of(entry):
    return json.loads(entry.read_bytes().partition(b"\n")[2])


def rewrite(entry, body):
    """Write an entry with a right checksum."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    entry.write_bytes(b"%08x\n" % zlib.crc32(body) + body)


def load(path):
    with WeightFile(path) as file:
        return index_cache.load(file.identity), file.size


class TestHits:
    def test_a_hit_equals_a_miss(self, path, folder):
        miss = fa.inspect(path)
        assert not miss.cached
        hit = fa.inspect(path)
        assert hit.cached
        assert hit.index == miss.index
        assert hit.contents.refusals == miss.contents.refusals != {}
        assert hit.to_dict() == miss.to_dict()
        assert list(hit) == list(miss)
        assert fa.inspect(path, options=fa.LoadOptions(index_cache=False)).index == miss.index
        for key in miss:
            assert hit[key].read().tobytes() == miss[key].read().tobytes()

    def test_an_archive(self, tmp_path, path, folder):
        import zipfile

        archive = tmp_path / "model.keras"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("model.weights.h5", path.read_bytes())
        attacks.settle(archive)
        miss, hit = fa.inspect(archive), fa.inspect(archive)
        assert (miss.cached, hit.cached) == (False, True)
        assert hit.index == miss.index
        assert hit.index.base > 0
        assert hit["chunked"].read().tobytes() == np.arange(30.0).tobytes()

    def test_another_name_of_the_same_file(self, tmp_path, path, folder):
        fa.inspect(path)
        other = tmp_path / "other.weights.h5"
        path.rename(other)
        # Renaming moves ctime on most file systems: at worst a miss, never another index.
        assert fa.inspect(other).contents == fa.inspect(other, options=fa.LoadOptions(index_cache=False)).contents

    def test_allowing_a_rule_goes_around_it(self, path, folder):
        fa.inspect(path)
        options = fa.LoadOptions(allow={"soft-link"})
        for _ in range(2):
            catalog = fa.inspect(path, options=options)
            assert not catalog.cached
            assert catalog.contents.refusals == {}
        assert fa.inspect(path).contents.refusals != {}

    def test_the_entry_is_private(self, path, folder):
        fa.inspect(path)
        (entry,) = entries(folder)
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


class TestChanges:
    def test_written_in_place_with_the_same_size(self, path, folder):
        fa.inspect(path)
        size = path.stat().st_size
        with h5py.File(path, "r+") as file:
            del file["empty"]
        assert path.stat().st_size == size
        catalog = fa.inspect(path)
        assert not catalog.cached
        assert "empty" not in catalog

    def test_written_in_place_and_the_time_put_back(self, path, folder):
        fa.inspect(path)
        before = path.stat()
        with h5py.File(path, "r+") as file:
            del file["empty"]
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        catalog = fa.inspect(path)
        assert "empty" not in catalog

    def test_replaced_by_a_rename(self, tmp_path, path, folder):
        fa.inspect(path)
        other = tmp_path / "new.h5"
        with attacks.write(other) as file:
            file["another"] = 1
        os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        other.replace(path)
        catalog = fa.inspect(path)
        assert not catalog.cached
        assert "another" in catalog

    def test_touched(self, path, folder):
        fa.inspect(path)
        os.utime(path)
        assert not fa.inspect(path).cached

    def test_grown(self, path, folder):
        fa.inspect(path)
        with path.open("ab") as file:
            file.write(b"x")
        attacks.settle(path)
        assert not fa.inspect(path).cached

    def test_a_file_that_was_just_written_is_not_kept(self, tmp_path, folder):
        path = tmp_path / "fresh.h5"
        attacks.write(path).close()
        with WeightFile(path) as file:
            index = fa.inspect(path, options=fa.LoadOptions(index_cache=False)).index
            now = file.identity.ctime_ns
        assert entries(folder) == []
        for age, whole_second, kept in (
            (1_000_000, False, False),
            (19_000_000, False, False),
            (50_000_000, False, True),
            (1_500_000_000, True, False),
            (3_000_000_000, True, True),
            (-3_600_000_000_000, False, False),  # the clock has been put back
        ):
            mtime = now // 10**9 * 10**9 - 10**12 + (not whole_second)
            identity = index_cache.Identity(1, 2, 3, mtime, now)
            stub = type("time", (), {"time_ns": staticmethod(lambda age=age: now + age)})
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(index_cache, "time", stub)
                assert index_cache.store(identity, index) == kept, (age, whole_second)

    def test_one_entry_for_each_file(self, path, folder):
        for value in (1.0, 2.0, 3.0):
            write(path, value)
            fa.inspect(path)
            assert fa.inspect(path).cached
            assert len(entries(folder)) == 1


class TestHarm:
    @pytest.fixture
    def entry(self, path, folder):
        fa.inspect(path)
        assert fa.inspect(path).cached
        (entry,) = entries(folder)
        return entry

    def expect_miss(self, path):
        assert load(path)[0] is None
        catalog = fa.inspect(path)
        assert not catalog.cached
        assert len(catalog) == 6
        assert fa.inspect(path).cached  # the entry was written again

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\n",
            b"x",
            b"00000000\n",
            b"zzzzzzzz\n{}",
            bytes(1000),
            b"\xff" * 100,
            b"12345678\n{",
            b"{}",
            b"1e5\n[]",
        ],
    )
    def test_garbage(self, path, entry, content):
        entry.write_bytes(content)
        self.expect_miss(path)

    def test_every_truncation(self, path, entry):
        content = entry.read_bytes()
        for length in range(0, len(content), 37):
            entry.write_bytes(content[:length])
            assert load(path)[0] is None
        self.expect_miss(path)

    def test_one_wrong_bit(self, path, entry):
        content = entry.read_bytes()
        for position in range(0, len(content), 41):
            damaged = bytearray(content)
            damaged[position] ^= 4
            entry.write_bytes(damaged)
            assert load(path)[0] is None

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 0},
            {"format": index_cache.FORMAT + 1},
            {"format": None},
            {"identity": [1, 2, 3, 4, 5]},
            {"identity": []},
            {"base": -1},
            {"base": 1e999},
            {"base": 10**400},
            {"base": 1 << 62},
            {"size": -5},
            {"size": 1 << 40},
            {"size": float("nan")},
            {"keys": []},
            {"keys": [1, 2, 3, 4, 5, 6]},
            {"shapes": [[1.0]] * 6},
            {"shapes": [["4"]] * 6},
            {"shapes": [[-1, -12]] * 6},
            {"shapes": [[1 << 70]] * 6},
            {"shapes": "abcdef"},
            {"dtypes": ["<f3"] * 6},
            {"dtypes": ["O"] * 6},
            {"dtypes": [""] * 6},
            {"dtypes": ["|O8"] * 6},
            {"dtypes": [["<f4"]] * 6},
            {"offsets": [-1] * 6},
            {"offsets": [1 << 50] * 6},
            {"offsets": ["1"] * 6},
            {"offsets": [0.5] * 6},
            {"details": None},
            {"details": {"chunked": 5}},
            {"groups": []},
            {"groups": {"": [1, 2]}},
            {"groups": {"": None}},
            {"texts": [["", "layer_names", [None]]]},
            {"texts": [[[], "layer_names", ["a"]]]},
            {"refusals": [[1]]},
            {"refusals": {"a": 1}},
        ],
        ids=str,
    )
    def test_a_wrong_value_with_a_right_checksum(self, path, entry, change):
        rewrite(entry, {**body_of(entry), **change})
        self.expect_miss(path)

    @pytest.mark.parametrize(
        "key", ["format", "identity", "base", "size", "keys", "shapes", "offsets", "groups", "texts"]
    )
    def test_a_missing_field(self, path, entry, key):
        body = body_of(entry)
        del body[key]
        rewrite(entry, body)
        self.expect_miss(path)

    @pytest.mark.parametrize("body", [b"[]", b"null", b"5", b'"x"', b"[" * 100_000, b"{}", b'{"format":1}'])
    def test_another_kind_of_json(self, path, entry, body):
        rewrite(entry, body)
        self.expect_miss(path)

    def test_an_entry_that_others_can_write(self, path, entry):
        for mode in (0o620, 0o602, 0o666):
            entry.chmod(mode)
            assert load(path)[0] is None
        entry.chmod(0o644)
        assert load(path)[0] is not None

    def test_an_entry_of_another_user(self, path, entry, monkeypatch):
        monkeypatch.setattr(os, "geteuid", lambda: entry.stat().st_uid + 1)
        assert load(path)[0] is None

    def test_an_entry_that_is_a_link(self, path, entry, tmp_path):
        entry.rename(tmp_path / "real.json")
        entry.symlink_to(tmp_path / "real.json")
        assert load(path)[0] is None

    def test_an_entry_that_is_a_folder_or_a_pipe(self, path, entry):
        entry.unlink()
        os.mkfifo(entry, 0o600)
        assert load(path)[0] is None
        entry.unlink()
        entry.mkdir()
        assert load(path)[0] is None
        assert not fa.inspect(path).cached
        assert entries(entry.parent) == [entry]  # the file that could not be renamed is removed

    def test_a_huge_entry_is_not_read(self, path, entry, monkeypatch):
        monkeypatch.setattr(index_cache, "MAX_ENTRY_BYTES", entry.stat().st_size - 1)
        assert load(path)[0] is None
        monkeypatch.undo()
        os.truncate(entry, 1 << 40)  # sparse: a terabyte that takes no space
        assert load(path)[0] is None

    @cases(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_bytes_with_a_right_checksum(self, path, entry, data):
        """There is never an error, and never an extent out of the file."""
        original = getattr(self, "original", None)
        if original is None:
            original = self.original = entry.read_bytes().partition(b"\n")[2]
        body = bytearray(original)
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(body) - 1))
            body[place : place + data.draw(st.integers(0, 3))] = data.draw(
                st.one_of(
                    st.sampled_from([b"9", b"-", b"99999999", b"1e9", b"null", b"[", b"]", b'"', b"\\ud800", b",0"]),
                    st.binary(max_size=3),
                )
            )
        rewrite(entry, bytes(body))
        index, size = load(path)
        if index is not None:
            assert 0 <= index.base <= index.base + index.size <= size
            for record in index.contents.records.values():
                assert record.nbytes >= 0
                assert record.encoding == "h5py" or sum(e.nbytes for e in record.extents) == record.nbytes
                assert all(index.base <= e.offset <= index.base + index.size - e.nbytes for e in record.extents)


class TestFolder:
    def test_off(self, tmp_path, path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        for setting in ("off", "OFF", "0", "no", "false"):
            monkeypatch.setenv("FASTASSIGN_CACHE", setting)
            assert index_cache.folder() is None
            assert not fa.inspect(path).cached
            assert not fa.inspect(path).cached
        assert sorted(tmp_path.rglob("*")) == before

    def test_where_it_is(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FASTASSIGN_CACHE", "")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert index_cache.folder() == tmp_path / "xdg" / "fastassign" / "index"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert index_cache.folder() == tmp_path / "home" / ".cache" / "fastassign" / "index"

    def test_it_can_not_be_made(self, tmp_path, path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FASTASSIGN_CACHE", str(tmp_path / "file" / "cache"))
        assert len(fa.inspect(path)) == 6
        assert not fa.inspect(path).cached

    def test_it_can_not_be_written_to(self, path, folder, monkeypatch):
        def denied(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(index_cache.tempfile, "NamedTemporaryFile", denied)
        assert len(fa.inspect(path)) == 6
        assert not fa.inspect(path).cached

    @pytest.mark.parametrize("failing", ["replace", "_encode"])
    def test_a_failure_leaves_nothing_behind(self, path, folder, monkeypatch, failing):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os if failing == "replace" else index_cache, failing, full)
        assert len(fa.inspect(path)) == 6
        assert entries(folder) == []

    def test_pruning_keeps_the_newest_and_what_is_not_ours(self, path, folder, monkeypatch):
        monkeypatch.setattr(index_cache, "MAX_ENTRIES", 3)
        folder.mkdir(parents=True)
        foreign = [folder / name for name in ("notes.json", "1-2-3.json", "1-2-3-4-5-6.json", "readme.txt")]
        old = [folder / f"{i:x}-{i:x}-a-b-c.json" for i in range(1, 8)]
        for i, place in enumerate([*foreign, *old]):
            place.write_text("{}")
            os.utime(place, ns=(0, 10**9 * (i + 1)))
        fa.inspect(path)
        kept = entries(folder)
        assert set(foreign) <= set(kept)
        mine = [place for place in kept if place not in foreign]
        assert len(mine) == 3
        assert set(old[-2:]) <= set(mine)
        assert fa.inspect(path).cached


class TestConcurrency:
    def test_threads(self, tmp_path, folder):
        paths = [tmp_path / f"{i}.weights.h5" for i in range(3)]
        for i, path in enumerate(paths):
            write(path, float(i + 1))
        expected = [fa.inspect(path, options=fa.LoadOptions(index_cache=False)).index for path in paths]
        errors = []

        def work():
            try:
                for _ in range(5):
                    for path, index in zip(paths, expected, strict=True):
                        assert fa.inspect(path).index == index
                        for entry in folder.glob("*.json"):
                            entry.unlink(missing_ok=True)
            except BaseException as error:  # noqa: BLE001 - for the thread that asserts
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert not list(folder.glob(".new-*"))

    def test_processes(self, path, folder):
        expected = fa.inspect(path, options=fa.LoadOptions(index_cache=False)).to_dict()
        code = (
            "import sys, json, pathlib; import fastassign as fa\n"
            "for _ in range(40):\n"
            "    print(json.dumps(fa.inspect(sys.argv[1]).to_dict()))\n"
            "    for entry in pathlib.Path(sys.argv[2]).glob('*.json'): entry.unlink(missing_ok=True)\n"
        )
        command = [sys.executable, "-c", code, str(path), str(folder)]
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for child in children:
            output, _ = child.communicate(timeout=600)
            assert child.returncode == 0
            lines = output.splitlines()
            assert len(lines) == 40
            assert all(json.loads(line) == json.loads(json.dumps(expected)) for line in lines)
        assert not list(Path(folder).glob(".new-*"))
