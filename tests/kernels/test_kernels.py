"""Casts on bit patterns equal stock's, NaNs included; so do the CUDA kernels in numba's simulator."""

import dataclasses
import json
import os
import subprocess
import sys

import h5py
import keras
import ml_dtypes
import numba
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from fastassign.kernels import cast, scatter

KINDS = ("bfloat16", "float16")
DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}

# Every upper half with these lower ones: ties of both kinds, one below and one above, and values in between.
LOW = (
    *(0x0000, 0x0001, 0x0002, 0x07FF, 0x0FFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x2FFF, 0x3000, 0x3001, 0x5000, 0x7000),
    *(0x7FFF, 0x8000, 0x8001, 0x9000, 0xAAAA, 0xB000, 0xC000, 0xD000, 0xEFFF, 0xF000, 0xF001, 0xFFFF),
)
PATTERNS = np.concatenate([(np.arange(1 << 16, dtype=np.uint32) << 16) | low for low in LOW])
NANS = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FA12345, 0xFFA12345, 0x7FC12345], np.uint32)


def bits(value):
    return np.asarray(value).view(np.uint16)


def cast_bits(patterns, kind):
    result = np.empty(patterns.shape, np.uint16)
    cast.cast_bits(patterns, result, kind)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_is_cast_as_keras_casts_it(kind, tmp_path):
    numbers, expected = PATTERNS.view(np.float32), cast_bits(PATTERNS, kind)
    variable = keras.Variable(np.zeros(numbers.shape, np.float32), dtype=kind)
    variable.assign(numbers)
    np.testing.assert_array_equal(bits(variable.value), expected)
    with h5py.File(tmp_path / "numbers.h5", "w") as file:
        variable.assign(file.create_dataset("numbers", data=numbers))
    np.testing.assert_array_equal(bits(variable.value), expected)
    variable = tf.Variable(tf.zeros(numbers.shape, kind))
    variable.assign(numbers)
    np.testing.assert_array_equal(bits(variable), expected)
    with np.errstate(all="ignore"):
        tf_keras.backend.batch_set_value([(variable, numbers)])
    np.testing.assert_array_equal(bits(variable), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_is_fed_the_same(kind):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        placeholder = tf.compat.v1.placeholder(kind, PATTERNS.shape)
        fed = session.run(tf.identity(placeholder), {placeholder: PATTERNS.view(np.float32)})
    np.testing.assert_array_equal(bits(fed), cast_bits(PATTERNS, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_nans_are_cast_alike_in_every_place(kind):
    for length in range(1, 68):
        for first in range(len(NANS)):
            patterns = np.resize(np.roll(NANS, first), length)
            one_by_one = np.concatenate([cast_bits(patterns[i : i + 1], kind) for i in range(length)])
            np.testing.assert_array_equal(cast_bits(patterns, kind), one_by_one)
            tensor = tf.convert_to_tensor(patterns.view(np.float32), dtype=kind)
            np.testing.assert_array_equal(bits(tensor), one_by_one)


@pytest.mark.parametrize("kind", KINDS)
def test_tf_cast_gives_the_same_numbers_and_some_nan_for_a_nan(kind):
    result, expected = bits(tf.cast(PATTERNS.view(np.float32), kind)), cast_bits(PATTERNS, kind)
    nan = np.isnan(PATTERNS.view(np.float32))
    np.testing.assert_array_equal(result[~nan], expected[~nan])
    assert np.isnan(result[nan].view(DTYPES[kind])).all()
    assert np.isnan(expected[nan].view(DTYPES[kind])).all()


@pytest.fixture(scope="module")
def arithmetic():
    """Compile the card's arithmetic for the CPU."""
    from fastassign.kernels import cuda

    bfloat16_bits, float16_bits = numba.njit(cuda.bfloat16_bits.py_func), numba.njit(cuda.float16_bits.py_func)

    @numba.njit
    def compute(patterns, half, quiet):
        result = np.empty(patterns.shape, np.uint16)
        for i in range(len(patterns)):
            number = np.int64(patterns[i])
            result[i] = float16_bits(number, quiet) if half else bfloat16_bits(number)
        return result

    return compute


@pytest.mark.parametrize("kind", KINDS)
def test_the_cards_arithmetic(arithmetic, kind):
    result = arithmetic(PATTERNS, kind == "float16", cast.quiet_bit())
    np.testing.assert_array_equal(result, cast_bits(PATTERNS, kind))


def test_the_cards_arithmetic_on_every_float_that_is_denormal_as_float16(arithmetic):
    # From below half the smallest to above the largest denormal: 13 exponents, each with every eleventh significand.
    patterns = np.arange(0x32800000, 0x39000000, 11, dtype=np.uint32)
    np.testing.assert_array_equal(arithmetic(patterns, True, 0), cast_bits(patterns, "float16"))


def test_quiet_nans(arithmetic):
    # The results of a processor's own instruction (vcvtps2ph), which numpy uses where it is built for it.
    quieted = [0x7E00, 0xFE00, 0x7E00, 0xFE00, 0x7F09, 0xFF09, 0x7E09]
    assert arithmetic(NANS, True, 0x0200).tolist() == quieted
    expected = quieted if cast.quiet_bit() else [0x7E00, 0xFE00, 0x7C01, 0xFC01, 0x7D09, 0xFD09, 0x7E09]
    assert cast_bits(NANS, "float16").tolist() == expected


def test_the_casts_are_those_of_float32():
    assert set(cast.CASTS.values()) == set(KINDS)
    assert {(source, kind) for (source, _), kind in cast.CASTS.items()} == {("float32", kind) for kind in KINDS}


# Copies and casts by the kernels with a table; elements that no row names must stay unchanged.
SCATTER = """
import sys
import numpy as np

rng = np.random.default_rng(7)
SPECIAL = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFA12345, 0x7FC12345, 0x7F7FFFFF, 0x477FF000,
                    0x33000000, 0x33000001, 0x387FFFFF, 0x00018000, 0x3F808000, 0x3F818000], np.uint32)

def table_of(counts, align):
    rows, start, target = [], 0, align
    for count in counts:
        rows.append((start, target, count))
        start += -(-count // align) * align
        target += -(-count // align) * align + align * int(rng.integers(0, 3))
    order = rng.permutation(len(rows))
    return np.array(rows, np.int64)[order], start, target + align

def slab_of(size):
    slab = rng.integers(0, 1 << 32, size, dtype=np.uint32)
    places = rng.permutation(size)[: len(SPECIAL)]
    slab[places] = SPECIAL[: len(places)]
    return slab

def expected(kind, slab, destination, table):
    from fastassign.kernels.cast import cast_bits

    result = destination.copy()
    for start, target, count in table:
        if kind == "copy":
            result[target : target + count] = slab[start : start + count]
        else:
            cast_bits(slab[start : start + count], result[target : target + count], kind)
    return result
"""

SIMULATED = (
    SCATTER
    + """
from numba import cuda
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray as on_device

from fastassign.kernels.cast import quiet_bit
from fastassign.kernels.cuda import scatter_bytes, scatter_cast

for grid, threads in (((1, 1), 4), ((2, 3), 8), ((5, 2), 3), ((3, 40), 2)):
    for counts in ((1,), (0, 5, 0), (3, 0, 700, 1, 17, 64, 2, 8, 31), (0,), ()):
        for align in (1, 2, 8):
            table, size, room = table_of(counts, align)
            table = table.reshape(-1, 3)
            slab = slab_of(size)
            destination = rng.integers(0, 1 << 16, room, dtype=np.uint16)
            for kind in ("bfloat16", "float16"):
                result = destination.copy()
                scatter_cast[grid, threads](
                    on_device(slab), on_device(result), on_device(table), kind == "float16", quiet_bit())
                np.testing.assert_array_equal(result, expected(kind, slab, destination, table))
            slab = np.resize(slab.view(np.uint8), -(-size // 8) * 8)
            destination = np.resize(destination.view(np.uint8), -(-room // 8) * 8)
            result = destination.copy()
            scatter_bytes[grid, threads](on_device(slab), on_device(result), on_device(slab.view(np.uint64)),
                                         on_device(result.view(np.uint64)), on_device(table))
            np.testing.assert_array_equal(result, expected("copy", slab, destination, table))
print("equal")
"""
)


def run(code, **environment):
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=600, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return child.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_kernels_in_the_simulator():
    assert run(SIMULATED, NUMBA_ENABLE_CUDASIM="1") == "equal"


def test_the_grid_suits_the_rows():
    for rows in (1, 2, 100, 932, 40_000, 1_000_000):
        for steps in (1, 1000, 2 << 20, 1 << 33):
            along, down = scatter.grid(rows, steps)
            assert 1 <= down <= min(rows, 65535)
            assert 128 <= along * down <= 65535
    assert scatter.grid(932, 2 << 20)[0] >= 32  # a long row is not left to a few blocks
    assert scatter.grid(932, 4)[0] == 1


def launch(**changed):
    work = scatter.Scatter(
        source=256, source_nbytes=64, destination=512, destination_nbytes=64,
        table=1024, rows=1, longest=16, kind="copy",
    )  # fmt: skip
    scatter.launch(dataclasses.replace(work, **changed), stream=0, ordinal=0)


def test_launch_refuses_unknown_kinds_and_unaligned_addresses():
    with pytest.raises(ValueError, match="kind must be one of copy, bfloat16, float16, not 'float32'"):
        launch(kind="float32")
    for name in ("source", "destination", "table"):
        with pytest.raises(ValueError, match="multiples of 8"):
            launch(**{name: 260})


def test_an_empty_table_needs_no_card():
    launch(rows=0)
    launch(longest=0)


def test_without_a_card_the_reason_is_given():
    code = (
        "import json, sys\n"
        "from fastassign.kernels import cast, scatter\n"
        "heavy = {'numba', 'ml_dtypes', 'tensorflow'} & sys.modules.keys()\n"
        "print(json.dumps([sorted(heavy), scatter.available()]))"
    )
    heavy, reason = json.loads(run(code, CUDA_VISIBLE_DEVICES="-1"))
    assert heavy == []
    assert reason.startswith("numba can't use CUDA: ")
    assert "simulator" in json.loads(run(code, NUMBA_ENABLE_CUDASIM="1"))[1]
    without = "import sys; sys.modules['numba'] = None\n" + code.replace("'numba', ", "")
    assert json.loads(run(without))[1].startswith("numba can't use CUDA: ")


@pytest.fixture
def cuda():
    """Find a card, or skip."""
    reason = scatter.available()
    if reason:
        pytest.skip(reason)
    from numba import cuda

    return cuda


def address(array):
    return array.__cuda_array_interface__["data"][0]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["copy", *KINDS])
@pytest.mark.parametrize("own_stream", [False, True])
def test_launch_on_a_card(cuda, kind, own_stream):
    names = {}
    exec(SCATTER, names)
    rng, unit = names["rng"], 1 if kind == "copy" else 2
    counts = (1, 7, 64, 4096, 100_003, 2 << 20, 12, 8, 300)
    slab = names["slab_of"](sum(counts) + 16 * len(counts))
    elements = slab.view(np.uint8) if kind == "copy" else slab
    # Each destination is an allocation of its own, longer than its row.
    before = [rng.integers(0, 256, unit * (count + 5), dtype=np.uint8) for count in counts]
    stream = cuda.stream() if own_stream else None
    handle = int(getattr(stream.handle, "value", stream.handle)) if own_stream else 0
    on_card = [cuda.to_device(data) for data in before]
    base = min(map(address, on_card))
    end = max(address(array) + array.nbytes for array in on_card)
    rows, start = [], 0
    for count, array in zip(counts, on_card, strict=True):
        start += len(rows) % 2  # so that not every row can be copied in words
        rows.append((start, (address(array) - base) // unit, count))
        start = -(-(start + count) // 8) * 8
    source, table = cuda.to_device(slab), cuda.to_device(np.array(rows, np.int64))
    cuda.synchronize()
    work = scatter.Scatter(
        source=address(source), source_nbytes=slab.nbytes,
        destination=base, destination_nbytes=end - base,
        table=address(table), rows=len(rows), longest=max(counts), kind=kind,
    )  # fmt: skip
    scatter.launch(work, stream=handle, ordinal=0)
    cuda.synchronize()
    for (start, _, count), data, array in zip(rows, before, on_card, strict=True):
        dtype = np.uint8 if kind == "copy" else np.uint16
        expected = names["expected"](kind, elements, data.view(dtype), [(start, 0, count)])
        np.testing.assert_array_equal(array.copy_to_host().view(dtype), expected)


@pytest.mark.gpu
def test_every_pattern_on_a_card(cuda):
    for kind in KINDS:
        source, result = cuda.to_device(PATTERNS), cuda.to_device(np.zeros(PATTERNS.shape, np.uint16))
        table = cuda.to_device(np.array([(0, 0, len(PATTERNS))], np.int64))
        cuda.synchronize()
        work = scatter.Scatter(
            source=address(source), source_nbytes=PATTERNS.nbytes,
            destination=address(result), destination_nbytes=2 * len(PATTERNS),
            table=address(table), rows=1, longest=len(PATTERNS), kind=kind,
        )  # fmt: skip
        scatter.launch(work, stream=0, ordinal=0)
        cuda.synchronize()
        np.testing.assert_array_equal(result.copy_to_host(), cast_bits(PATTERNS, kind))
