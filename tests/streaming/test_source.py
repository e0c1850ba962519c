"""Reads that take several calls, or fail."""

import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastassign as fa
from fastassign.catalog.file import WeightFile
from fastassign.errors import ReadFailed
from fastassign.streaming.buffers import ALIGNMENT, aligned_array, is_aligned
from fastassign.streaming.source import fill
from support import faults

CONTENT = np.random.default_rng(5).bytes(5000)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with WeightFile(path) as file:
        yield file


def buffers_of(sizes):
    memory = [bytearray(size) for size in sizes]
    return memory, [memoryview(one) for one in memory]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    offset=st.integers(0, 4000),
    cuts=st.lists(st.integers(0, 60), min_size=1, max_size=50),
)
def test_however_it_is_cut_the_bytes_are_right(file, sizes, offset, cuts):
    def before(number, *_):
        if cuts[number % len(cuts)] == 0 and number < 200:
            raise InterruptedError(errno.EINTR, "Interrupted system call")

    make = faults.faulty(before=before, cut=lambda number, offset, wanted: max(1, cuts[number % len(cuts)]))
    memory, views = buffers_of(sizes)
    fill(make(file), views, offset, sum(sizes))
    assert b"".join(memory) == CONTENT[offset : offset + sum(sizes)]


def test_nothing_to_read_asks_for_nothing(file):
    source = faults.one_byte_at_a_time()(file)
    fill(source, [], 0, 0)
    assert source.calls == 0


def test_the_end_of_the_file(file):
    memory, views = buffers_of([100, 100])
    with pytest.raises(fa.Truncated, match="ends at byte 5000, 80 bytes short"):
        fill(file, views, 4880, 200)
    assert bytes(memory[0]) == CONTENT[4880:4980]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_failing_disk(file, code):
    def before(*_):
        raise OSError(code, os.strerror(code))

    with pytest.raises(ReadFailed, match="reading 10 bytes at offset 7 failed") as caught:
        fill(faults.faulty(before=before)(file), [memoryview(bytearray(10))], 7, 10)
    assert caught.value.errno == code
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value.__cause__, OSError)


def test_another_error_is_passed_on(file):
    def before(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill(faults.faulty(before=before)(file), [memoryview(bytearray(10))], 7, 10)


@pytest.mark.parametrize("nbytes", [1, 63, 64, 65, 1 << 20])
def test_aligned_memory(nbytes):
    for _ in range(5):
        array = aligned_array(nbytes)
        assert array.nbytes == nbytes
        assert array.ctypes.data % ALIGNMENT == 0
        assert is_aligned(array)
    assert not is_aligned(aligned_array(200)[1:])


class TestWeightFile:
    def test_read_is_exact_or_an_error(self, file):
        assert file.read(10, 100) == CONTENT[10:110]
        assert file.read_some(4990, 100) == CONTENT[4990:]
        with pytest.raises(fa.Truncated, match="ends at byte 5000, 90 bytes short") as caught:
            file.read(4990, 100)
        assert caught.value.file == str(file.path)

    def test_paths_that_are_not_files(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(fa.Malformed, match="not a regular file"):
            WeightFile(tmp_path / "pipe")  # it does not wait for a writer
        with pytest.raises(IsADirectoryError):
            WeightFile(tmp_path)
        with pytest.raises(FileNotFoundError) as caught:
            WeightFile(tmp_path / "none")
        assert caught.value.errno == errno.ENOENT
        assert caught.value.filename == str(tmp_path / "none")

    def test_changes_are_seen(self, file):
        file.check_unchanged()
        status = file.path.stat()
        file.path.chmod(0o600)  # does not change the bytes
        file.check_unchanged()
        os.utime(file.path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        with pytest.raises(fa.Changed) as changed:
            file.check_unchanged()
        os.truncate(file.path, 4999)
        with pytest.raises(fa.Truncated, match="shrank from 5000 to 4999") as shrank:
            file.check_unchanged()
        assert changed.value.file == shrank.value.file == str(file.path)

    def test_it_is_closed_once_even_if_forgotten(self, tmp_path):
        (tmp_path / "x").write_bytes(b"x")
        before = len(os.listdir("/proc/self/fd"))
        file = WeightFile(tmp_path / "x")
        other = file.duplicate()
        assert len(os.listdir("/proc/self/fd")) == before + 2
        file.close()
        file.close()
        assert other.read(0, 1) == b"x"
        del other
        assert len(os.listdir("/proc/self/fd")) == before
        with pytest.raises(FileNotFoundError):
            WeightFile(tmp_path / "none")  # the half-made object is collected without an error
