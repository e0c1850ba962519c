"""Reads past the page cache: the pages around the wanted bytes, and the end of a file."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import fastassign as fa
from fastassign.catalog.file import WeightFile
from fastassign.streaming.unbuffered import UnbufferedFile, fill_pages
from support.options import load_options
from support.simulated import simulated

PAGE = 4096


class Bytes:
    """A file in memory that is read as O_DIRECT demands, page by page; ``step`` bytes at a time at most."""

    def __init__(self, content, step=1 << 30):
        self.content, self.step, self.calls = content, step, 0

    def preadv(self, buffers, offset):
        self.calls += 1
        (buffer,) = buffers
        assert offset % PAGE == 0
        assert len(buffer) % PAGE == 0
        found = self.content[offset : offset + min(len(buffer), self.step)]
        buffer[: len(found)] = found
        return len(found)


CONTENT = np.random.default_rng(0).bytes(10 * PAGE + 100)


@given(data=st.data(), step=st.sampled_from([PAGE, 3 * PAGE, 1 << 30]))
def test_any_range_is_found_in_its_pages(data, step):
    offset = data.draw(st.integers(0, len(CONTENT) - 1))
    nbytes = data.draw(st.integers(1, len(CONTENT) - offset))
    view = memoryview(bytearray(-(-nbytes // PAGE) * PAGE + 2 * PAGE))
    start = fill_pages(Bytes(CONTENT, step), view, offset, nbytes)
    assert bytes(view[start : start + nbytes]) == CONTENT[offset : offset + nbytes]


@pytest.mark.parametrize("end", [0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 50])
def test_a_file_cut_short_is_truncated(end):
    source = Bytes(CONTENT[:end])
    with pytest.raises(fa.Truncated, match="the file ends"):
        fill_pages(source, memoryview(bytearray(4 * PAGE)), 10, 2 * PAGE + 50)
    assert source.calls < 5


def test_the_last_page_need_not_be_whole():
    view = memoryview(bytearray(4 * PAGE))
    start = fill_pages(Bytes(CONTENT), view, 9 * PAGE + 7, PAGE + 93)
    assert bytes(view[start : start + PAGE + 93]) == CONTENT[9 * PAGE + 7 :]


def test_it_is_the_file_that_is_open(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with WeightFile(path) as file:
        (tmp_path / "other").write_bytes(bytes(len(CONTENT)))
        (tmp_path / "other").replace(path)
        try:
            unbuffered = UnbufferedFile(file.descriptor)
        except OSError as error:
            pytest.skip(f"this file system has no O_DIRECT: {error}")
        memory = np.empty(12 * PAGE, dtype=np.uint8)
        view = memory[-memory.ctypes.data % PAGE :][: 11 * PAGE].data
        with unbuffered:
            start = fill_pages(unbuffered, view, 100, 9 * PAGE)
    assert bytes(view[start : start + 9 * PAGE]) == CONTENT[100 : 100 + 9 * PAGE]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(unbuffered._descriptor)


@pytest.fixture
def file(tmp_path):
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(700), keras.layers.Dense(3)])
    model.layers[0].kernel.assign(np.random.default_rng(1).standard_normal((300, 700)))
    model.save_weights(tmp_path / "m.weights.h5")
    with tf.device("CPU:1"):
        other = keras.models.clone_model(model)
    return tmp_path / "m.weights.h5", model, other


@pytest.mark.parametrize("slot_bytes", [16384, 1 << 20])
def test_a_load_past_the_cache_is_exact(file, monkeypatch, slot_bytes):
    path, model, other = file
    options = load_options(direct_io=True, route="direct", slot_bytes=slot_bytes)
    with simulated(monkeypatch):
        report = fa.load_weights(other, path, options=options)
    assert report.routes == {"direct": 4}
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_report_says_where_it_is_not_possible(file, monkeypatch):
    path, model, other = file
    opened = os.open

    def without(name, flags, *arguments, **more):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(name, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", without)
    with simulated(monkeypatch):
        report = fa.load_weights(other, path, options=load_options(direct_io=True, route="direct"))
    assert "direct_io" in report.fallbacks[0] and "page cache" in report.fallbacks[0]
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, two)
