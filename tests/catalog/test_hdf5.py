"""The index through h5py, compared with an independent walk with h5py's high-level API."""

import itertools

import h5py
import numpy as np
import pytest
from h5py import h5t

import fastassign as fa
from fastassign.catalog import hdf5, hdf5_index
from fastassign.catalog.catalog import numpy_dtype
from fastassign.catalog.classic import index as classic
from fastassign.catalog.file import WeightFile
from support import attacks

RNG = np.random.default_rng(7)
DTYPES = ["<f4", ">f4", "<f2", ">f2", "<f8", ">i4", "|i1", "|u1", "<u2", "<i8", ">u8", "|b1", "<c8", "<c16", ">c8"]


def random_array(shape, dtype):
    dtype = np.dtype(dtype)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    if dtype.kind == "b":
        return RNG.integers(0, 2, shape).astype(bool)
    return np.frombuffer(RNG.bytes(nbytes), dtype).reshape(shape)


def all_dtypes(file):
    for dtype in DTYPES:
        file[f"dtypes/{dtype[1:]}-{'big' if dtype[0] == '>' else 'little'}"] = random_array((3, 5), dtype)


def chunked(file):
    array = random_array((33, 17), "<f4")
    file.create_dataset("chunks", data=array, chunks=(8, 8))
    file.create_dataset("gzip", data=array, chunks=(8, 8), compression="gzip")
    file.create_dataset("all", data=array, chunks=(8, 17), compression="gzip", shuffle=True, fletcher32=True)
    file.create_dataset("big", data=array.astype(">f8"), chunks=(40, 40), maxshape=(None, 40), shuffle=True)
    file.create_dataset("partly", (64, 4), "<i4", chunks=(16, 4), fillvalue=-3)[20:30] = 9
    file.create_dataset("one", data=np.float32(3).reshape(1), chunks=(1,))


def never_written(file):
    file.create_dataset("zeros", (7, 3), "<f4")
    file.create_dataset("sevens", (7, 3), ">i2", fillvalue=7)
    file.create_dataset("chunks", (7, 3), "<f8", chunks=(2, 2), fillvalue=0.25)


def compact(file):
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((4, 2))
    dataset = h5py.h5d.create(file.id, b"compact", h5t.IEEE_F32LE, space, creation)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, random_array((4, 2), "<f4"))


def shapes(file):
    file["scalar"] = np.float64(2.5)
    file["true"] = True
    for shape in ((0,), (3, 0, 2), (1,), (1, 1, 1), (2, 3, 4, 5), (1,) * 12):
        file["shape" + "x".join(map(str, shape))] = random_array(shape, "<f4")
    file.create_dataset("empty", (0, 4), "<f4", chunks=(2, 4), maxshape=(None, 4))


def groups(file):
    file.create_group("a/b/c/d/e")["f"] = random_array((2,), "<f4")
    file.create_group("void")
    for i in range(50):
        file[f"many/{i}"] = np.full(2, i, "<i4")
    file["größe/重み"] = random_array((2, 2), "<f4")
    file["with space/and:colon"] = random_array((2, 2), "<f4")


def texts(file):
    file.attrs["layer_names"] = np.array([b"one", b"second", b""])
    file.attrs["keras_version"] = "2.13.1"
    file.attrs["backend"] = b"tensorflow"
    file.attrs["model_config"] = "x" * 100_000 if file.libver[0] == "latest" else "x" * 1000
    group = file.create_group("one")
    group.attrs["weight_names"] = ["w/ä", "b"]
    group.attrs["name"] = "the name"
    other = file.create_group("second")
    other.attrs["weight_names"] = np.array([], "f8")
    parts = file.create_group("parts")
    parts.attrs["weight_names0"] = [b"a", b"b"]
    parts.attrs["weight_names1"] = [b"c"]
    numbers = file.create_group("numbers")
    numbers.attrs["weight_names"] = np.arange(3)
    numbers.attrs["layer_names"] = np.array([[b"two"], [b"dimensions"]])
    numbers.attrs["backend"] = h5py.Empty("S1")


def bfloat16(file):
    marked = file.create_dataset("marked", data=random_array((5,), "<u2").view("V2"))
    marked.attrs["dtype"] = "bfloat16"
    file.create_dataset("unmarked", data=random_array((5,), "<u2").view("V2"))
    file.create_dataset("bytes", data=random_array((5,), "<u1").view("V1"))
    chunks = file.create_dataset("chunks", data=random_array((6,), "<u2").view("V2"), chunks=(2,))
    chunks.attrs["dtype"] = "bfloat16"


def odd_numbers(file):
    twelve = h5t.STD_I16LE.copy()
    twelve.set_precision(12)
    dataset = h5py.h5d.create(file.id, b"twelve", twelve, h5py.h5s.create_simple((4,)))
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([-5, 0, 1, 2047], "i2"))
    brain = h5t.IEEE_F32LE.copy()
    brain.set_fields(15, 7, 8, 0, 7)
    brain.set_size(2)
    dataset = h5py.h5d.create(file.id, b"brain", brain, h5py.h5s.create_simple((4,)))
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([-5, 0, 1, 0.15625], "f4"))


LAYOUTS = [all_dtypes, chunked, never_written, compact, shapes, groups, texts, bfloat16, odd_numbers]
HOW = [{"libver": "earliest"}, {"libver": "latest"}, {"userblock_size": 512}, {"track_order": True}]


def walk(path):
    """Return arrays, names in groups and text attributes, by h5py's high-level API."""
    arrays, members, strings = {}, {}, {}

    def visit(group, prefix):
        members[prefix] = set(group)
        for name, value in group.attrs.items():
            key = prefix, name
            if name in {"layer_names", "weight_names", "keras_version", "backend", "name"} or name[-1:].isdigit():
                array = np.asarray(value, dtype=object).reshape(-1) if not isinstance(value, h5py.Empty) else None
                flat = np.ndim(value) < 2 and array is not None
                if flat and (array.size == 0 or isinstance(array[0], (str, bytes))):
                    strings[key] = tuple(v.decode() if isinstance(v, bytes) else str(v) for v in array)
        for name in group:
            child = group[name]
            path = f"{prefix}/{name}" if prefix else name
            if isinstance(child, h5py.Group):
                visit(child, path)
            else:
                arrays[path] = np.asarray(child[()])

    with h5py.File(path) as file:
        visit(file, "")
    return arrays, members, strings


@pytest.fixture(params=list(itertools.product(LAYOUTS, HOW)), ids=lambda p: f"{p[0].__name__}-{p[1]}")
def path(request, tmp_path):
    build, how = request.param
    path = tmp_path / "file.h5"
    with h5py.File(path, "w", **how) as file:
        build(file)
    return path


def read_contents(file):
    return hdf5_index.read_contents(file, base=0, size=file.size, limits=fa.Limits(), allow=frozenset())


def test_the_index_agrees_with_h5py(path):
    arrays, members, strings = walk(path)
    with WeightFile(path) as file, hdf5.Decoder(file, base=0, size=file.size) as decoder:
        contents = read_contents(file)
        assert contents.refusals == {}
        assert contents.records.keys() == arrays.keys()
        assert {key: set(names) for key, names in contents.groups.items()} == members
        assert contents.texts == strings
        for key, array in arrays.items():
            record = contents.records[key]
            assert record.key == key
            assert record.shape == array.shape
            assert record.nbytes == array.nbytes
            dtype = numpy_dtype(record.dtype)
            assert dtype.itemsize == array.dtype.itemsize
            native = array.astype(array.dtype.newbyteorder("="))
            if record.encoding == "raw":
                assert sum(extent.nbytes for extent in record.extents) == array.nbytes
                stored = b"".join(file.read(extent.offset, extent.nbytes) for extent in record.extents)
                assert stored == array.tobytes()
                assert record.detail == ""
                assert not record.dtype.startswith(">") or not array.size
            else:
                assert record.extents == ()
                assert record.detail
            # The decoder reads every dataset, plain ones too.
            decoded = np.full(record.shape, 0, dtype) if array.dtype.kind != "V" else np.zeros(record.shape, dtype)
            if array.size:
                decoder.read_into(record, decoded)
            assert decoded.tobytes() == native.tobytes()


def test_the_catalog_reads_the_same_values_as_h5py(path):
    arrays, _, _ = walk(path)
    catalog = fa.inspect(path)
    assert set(catalog) == set(arrays)
    for key, array in arrays.items():
        read = catalog[key].read()
        expected = np.asarray(array)
        assert read.shape == expected.shape
        assert read.dtype.isnative
        assert read.tobytes() == expected.astype(expected.dtype.newbyteorder("=")).tobytes()
        if read.size:
            read.reshape(-1).view("u1")[:1] += 1  # the array is the caller's own


def test_both_readers_agree(path):
    with WeightFile(path) as file:
        fast = classic.read_contents(file.read_some, base=0, size=file.size, limits=fa.Limits())
        if fast is None:
            return
        contents = read_contents(file)
    assert fast.texts == contents.texts
    assert {k: sorted(v) for k, v in fast.groups.items()} == {k: sorted(v) for k, v in contents.groups.items()}
    assert {k: (r.shape, r.dtype) for k, r in fast.records.items()} == {
        k: (r.shape, r.dtype) for k, r in contents.records.items()
    }
    for key, record in contents.records.items():
        if record.encoding == "raw":
            assert fast.records[key] == record


def test_plain_datasets_are_read_in_place_and_others_say_why(tmp_path):
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(4, dtype="<f4")
        file["big"] = np.arange(4, dtype=">f4")
        chunked(file.create_group("c"))
        never_written(file.create_group("n"))
        compact(file)
    with WeightFile(path) as file:
        records = read_contents(file).records
    assert {key: record.detail for key, record in records.items()} == {
        "plain": "",
        "big": "contiguous, big-endian",
        "c/chunks": "chunked",
        "c/gzip": "chunked, gzip",
        "c/all": "chunked, shuffle, gzip, fletcher32",
        "c/big": "chunked, big-endian, shuffle",
        "c/partly": "chunked",
        "c/one": "chunked",
        "n/zeros": "contiguous, never written",
        "n/sevens": "contiguous, never written, big-endian",
        "n/chunks": "chunked, never written",
        "compact": "compact",
    }


def test_a_marked_dataset_is_bfloat16(tmp_path):
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        bfloat16(file)
    catalog = fa.inspect(path)
    assert {key: catalog[key].record.dtype for key in catalog} == {
        "marked": "bfloat16", "unmarked": "|V2", "bytes": "|V1", "chunks": "bfloat16"
    }  # fmt: skip
    assert catalog["marked"].read().dtype.name == "bfloat16"


class TestDecoder:
    def test_a_dataset_that_changed_its_shape_is_not_read(self, tmp_path):
        path = tmp_path / "file.h5"
        with h5py.File(path, "w") as file:
            chunked(file)
        with WeightFile(path) as file:
            record = read_contents(file).records["big"]
        with h5py.File(path, "r+") as file:
            file["big"].resize((40, 17))
        with WeightFile(path) as file, hdf5.Decoder(file, base=0, size=file.size) as decoder:
            array = np.zeros(record.shape, "f8")
            with pytest.raises(fa.Malformed, match="the index says") as caught:
                decoder.read_into(record, array)
            assert caught.value.tensor == "big"
            assert not array.any()

    def test_a_chunk_whose_checksum_is_wrong(self, tmp_path):
        path = tmp_path / "file.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=np.full(4096, 77, "u1"), chunks=(4096,), fletcher32=True)
        attacks.patch(path, bytes([77]) * 4096, bytes([77]) * 4095 + b"\x00")
        with pytest.raises(fa.Malformed) as caught:
            fa.inspect(path)["x"].read()
        assert caught.value.tensor == "x"
        assert caught.value.file == str(path)

    def test_a_file_that_another_one_replaced(self, tmp_path):
        path, other = tmp_path / "file.h5", tmp_path / "other.h5"
        for place in (path, other):
            with h5py.File(place, "w") as file:
                chunked(file)
        arrays, _, _ = walk(path)
        second_name = tmp_path / "second.h5"
        second_name.hardlink_to(path)
        with WeightFile(path) as file:
            record = read_contents(file).records["all"]
            other.replace(path)
            with pytest.raises(fa.Changed, match="was replaced"), hdf5.Decoder(file, base=0, size=file.size):
                pass
            # The open file can still be read when its name is gone.
            second_name.unlink()
            with hdf5.Decoder(file, base=0, size=file.size) as decoder:
                array = np.zeros(record.shape, "f4")
                decoder.read_into(record, array)
        assert array.tobytes() == arrays["all"].tobytes()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89HDF\r\n\x1a\n", b"hello", b"\x89HDF\r\n\x1a\n" + bytes(2000), bytes(5000)],
)
def test_a_file_that_is_not_hdf5_is_malformed(tmp_path, content):
    path = tmp_path / "file.h5"
    path.write_bytes(content)
    with pytest.raises((fa.Malformed, fa.Truncated)) as caught:
        fa.inspect(path)
    assert caught.value.file == str(path)
    with pytest.raises(OSError) as stock:
        h5py.File(path)
    assert str(caught.value) == str(stock.value)
    assert "file: " + str(path) in caught.value.__notes__
