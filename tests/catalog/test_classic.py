"""The classic reader: where it answers it is equal to h5py, and no file misleads it.

The oracle walks the same file with h5py's high-level interface, and the bytes at the extents are compared with the
values that h5py reads. So both the index and the offsets are checked against somebody else's code.
"""

import io
import os
import random
import re
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from fastassign.catalog.classic.index import read_contents
from fastassign.catalog.policy import Limits
from support.profiles import TIMES, cases

TEXT_ATTRIBUTE = re.compile(r"(layer_names|weight_names)\d*|keras_version|backend|name")
CORPUS = os.environ.get("FASTASSIGN_CORPUS")


def index(raw, *, base=0, size=None, limits=None):
    """Read from a file in memory; fail on any read outside of it."""
    size = len(raw) - base if size is None else size

    def read(offset, nbytes):
        assert base <= offset and nbytes >= 0 and offset + nbytes <= base + size
        return bytes(raw[offset : offset + nbytes])

    return read_contents(read, base=base, size=size, limits=limits or Limits())


def made(fill, **options):
    """Return the bytes of a file that `fill` writes into."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", **options) as file:
        fill(file)
    return buffer.getvalue()


def dtype_of(dataset):
    if dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2:
        mark = dataset.attrs.get("dtype")
        return "bfloat16" if mark in {"bfloat16", b"bfloat16"} else "|V2"
    return dataset.dtype.str


def texts_of(path, group):
    for name in group.attrs:
        if TEXT_ATTRIBUTE.fullmatch(name):
            value = group.attrs[name]
            items = value.tolist() if isinstance(value, np.ndarray) else [value]
            yield (path, name), tuple(item.decode() if isinstance(item, bytes) else item for item in items)


def walk(group, path=""):
    """Return groups, texts and datasets below a group, as h5py sees them."""
    groups, texts, datasets = {path: tuple(group)}, dict(texts_of(path, group)), {}
    for name in group:
        key = f"{path}/{name}" if path else name
        child = group[name]
        if isinstance(child, h5py.Group):
            for mine, more in zip((groups, texts, datasets), walk(child, key), strict=True):
                mine.update(more)
        else:
            datasets[key] = (child.shape, dtype_of(child), child.id.get_offset(), child[()].tobytes())
    return groups, texts, datasets


def assert_equal(contents, raw, *, base=0, size=None):
    """Compare an index with h5py's view of the same bytes."""
    end = len(raw) if size is None else base + size
    with h5py.File(io.BytesIO(raw[base:end]), "r") as file:
        groups, texts, datasets = walk(file)
    assert contents is not None
    assert contents.refusals == {}
    assert contents.groups == groups
    assert contents.texts == texts
    assert list(contents.records) == list(datasets)
    for key, (shape, dtype, offset, data) in datasets.items():
        record = contents.records[key]
        assert (record.key, record.shape, record.dtype, record.encoding) == (key, shape, dtype, "raw")
        assert record.nbytes == len(data)
        stored = b"".join(bytes(raw[e.offset : e.offset + e.nbytes]) for e in record.extents)
        assert stored == data
        assert len(record.extents) == bool(data)
        if offset is not None and data:
            assert record.extents[0].offset == base + offset
    return contents


def check(raw):
    return assert_equal(index(raw), raw)


def ordinary(file):
    """Write a small file with all kinds of objects that Keras writes."""
    file.attrs["backend"] = "tensorflow"
    file.attrs["keras_version"] = np.bytes_(b"2.15.0")
    file.attrs["model_config"] = '{"class_name": "Functional"}' * 300
    file.attrs["layer_names"] = ["dense", "drop", "dense_1"]
    for name in ("dense", "dense_1"):
        group = file.create_group(name)
        group.attrs["weight_names"] = np.array([b"kernel:0", b"b:0"])
        group["kernel:0"] = np.arange(6, dtype="f4").reshape(2, 3)
        group["nested/b:0"] = np.arange(3, dtype="f4")
    file.create_group("drop").attrs["weight_names"] = []
    group = file.create_group("layers/dense/vars")
    group.parent.attrs["name"] = "dense"
    group["0"] = np.ones((4, 4), "f4")
    group["1"] = np.float64(2.5)
    group["2"] = np.zeros((0, 3), "i4")


class TestKerasFiles:
    """Files that the libraries write must be answered, and as h5py would."""

    @pytest.fixture(scope="class")
    def model(self):
        import keras

        inputs = keras.Input((4,), name="in")
        x = keras.layers.Dense(5, name="first")(inputs)
        x = keras.layers.BatchNormalization(name="norm")(x)
        x = keras.layers.Dropout(0.5, name="drop")(x)
        x = keras.layers.Dense(3, dtype="bfloat16", name="half")(x)
        model = keras.Model(inputs, keras.layers.Dense(2, dtype="float16", name="last")(x), name="net")
        model.compile(optimizer="adam", loss="mean_squared_error")
        model.optimizer.build(model.trainable_variables)
        return model

    def test_weights(self, model, tmp_path):
        path = tmp_path / "m.weights.h5"
        model.save_weights(path)
        contents = check(path.read_bytes())
        assert contents.records["layers/dense/vars/0"].shape == (4, 5)
        assert "bfloat16" in {record.dtype for record in contents.records.values()}
        assert contents.texts["layers/dense/vars", "name"] == ("first",)

    def test_whole_model(self, model, tmp_path):
        path = tmp_path / "m.h5"
        model.save(path)
        contents = check(path.read_bytes())
        assert contents.texts["model_weights/drop", "weight_names"] == ()
        assert contents.texts["model_weights", "layer_names"][:2] == ("in", "first")

    def test_archive(self, model, tmp_path):
        path = tmp_path / "m.keras"
        model.save(path)
        raw = path.read_bytes()
        base, size = member(path)
        contents = assert_equal(index(raw, base=base, size=size), raw, base=base, size=size)
        assert base > 0 and len(contents.records) > 10

    def test_tf_keras(self, tmp_path):
        tf_keras = pytest.importorskip("tf_keras")
        layers = [tf_keras.layers.Dense(3, name="a"), tf_keras.layers.LSTM(2, name="b")]
        model = tf_keras.Sequential([tf_keras.Input((5, 4)), *layers])
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        for name, save in (("m.h5", model.save), ("w.h5", model.save_weights)):
            save(tmp_path / name)
            contents = check((tmp_path / name).read_bytes())
            assert any(key.endswith("lstm_cell/kernel:0") for key in contents.records)


def member(path):
    """Return offset and bytes of the weights in a ``.keras`` archive."""
    with zipfile.ZipFile(path) as archive:
        found = archive.getinfo("model.weights.h5")
    header = Path(path).read_bytes()[found.header_offset :][:30]
    return found.header_offset + 30 + sum(struct.unpack("<HH", header[26:30])), found.file_size


@pytest.mark.skipif(not CORPUS, reason="FASTASSIGN_CORPUS names no folder of real files")
class TestCorpus:
    """Files that other people wrote over ten years."""

    FILES = sorted(Path(CORPUS).iterdir()) if CORPUS else []

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_file(self, path):
        raw = path.read_bytes()
        base, size = member(path) if path.suffix == ".keras" else (0, len(raw))
        contents = index(raw, base=base, size=size)
        if "libver_latest" in path.name or "chunked" in path.name:
            assert contents is None
        else:
            assert_equal(contents, raw, base=base, size=size)


class TestAccepted:
    """Parts of the format that must be answered."""

    def test_ordinary(self):
        contents = check(made(ordinary))
        assert contents.texts["drop", "weight_names"] == ()
        assert contents.records["layers/dense/vars/2"].extents == ()

    def test_inside_another_file(self):
        raw = made(ordinary)
        outer = b"x" * 77 + raw + b"y" * 99
        assert_equal(index(outer, base=77, size=len(raw)), outer, base=77, size=len(raw))

    @pytest.mark.parametrize("block", [512, 4096])
    def test_user_block(self, block):
        raw = made(ordinary, userblock_size=block)
        assert raw[:8] == bytes(8)
        check(raw)
        outer = bytes(777) + raw
        assert_equal(index(outer, base=777), outer, base=777)

    @pytest.mark.parametrize(
        "dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "?", "V1", "V2"]
    )
    def test_dtype(self, dtype):
        def fill(file):
            file["x"] = np.arange(6).astype("u1").view(dtype) if dtype[0] == "V" else np.arange(6).astype(dtype)
            file["scalar"] = np.zeros((), dtype)
            file["empty"] = np.zeros((2, 0, 3), dtype)
            file["deep"] = np.zeros((1, 2, 1, 2, 1), dtype)

        assert check(made(fill)).records["x"].dtype == np.dtype(dtype).str

    @pytest.mark.parametrize("mark", ["bfloat16", np.bytes_(b"bfloat16"), "float8", None])
    def test_marked_opaque(self, mark):
        def fill(file):
            for name in "ab":
                file[name] = np.arange(4, dtype="u2").view("V2")
                if mark is not None:
                    file[name].attrs["dtype"] = mark

        expected = "bfloat16" if mark in {"bfloat16", b"bfloat16"} else "|V2"
        assert {record.dtype for record in check(made(fill)).records.values()} == {expected}

    @pytest.mark.parametrize(
        "names",
        [
            [],
            ["a"],
            ["a", "", "longer than the others"],
            [b"a", b"bcd"],
            ["schön", "層"],
            np.array([b"a", b"", b"abc"]),
            np.array(["schön".encode()]),
            [f"layer_{i}" for i in range(3000)],
        ],
    )
    def test_texts(self, names):
        def fill(file):
            group = file.create_group("model_weights")
            for name in ("layer_names", "weight_names0", "weight_names12"):
                group.attrs[name] = names

        assert len(check(made(fill)).texts["model_weights", "weight_names12"]) == len(names)

    @pytest.mark.parametrize("value", ["2.15", b"2.15", np.bytes_(b"2.15"), "", "schön"])
    def test_scalar_text(self, value):
        def fill(file):
            file.attrs["keras_version"] = value
            file.attrs["other"] = 5
            file.attrs["third"] = np.arange(12.0).reshape(3, 4)

        assert len(check(made(fill)).texts) == 1

    def test_terminated_strings(self):
        def fill(file):
            kind = h5py.h5t.C_S1.copy()
            kind.set_size(6)
            space = h5py.h5s.create_simple((2,))
            h5py.h5a.create(file.id, b"layer_names", kind, space).write(np.array([b"abc", b"defgh"], "S6"))

        assert check(made(fill)).texts["", "layer_names"] == ("abc", "defgh")

    def test_compact(self):
        def fill(file):
            creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            creation.set_layout(h5py.h5d.COMPACT)
            for rows in (1, 2, 5):
                data = np.arange(rows * 3, dtype="f4").reshape(rows, 3)
                space = h5py.h5s.create_simple(data.shape)
                name = b"compact%d" % rows
                h5py.h5d.create(file.id, name, h5py.h5t.IEEE_F32LE, space, creation).write(
                    h5py.h5s.ALL, h5py.h5s.ALL, data
                )

        raw = made(fill)
        contents = check(raw)
        extent = contents.records["compact5"].extents[0]
        assert raw[extent.offset : extent.offset + extent.nbytes] == np.arange(15, dtype="f4").tobytes()

    def test_fill_value_and_time(self):
        def fill(file):
            file.create_dataset("filled", data=np.ones(3, "f4"), fillvalue=2.5)
            file.create_dataset("timed", data=np.ones(3, "f4"), track_times=True)
            file["timed"].attrs["comment"] = "not looked at"

        check(made(fill))

    def test_same_form(self):
        """Headers that differ only in the place of the data are read only once; these differ in another byte."""

        def fill(file):
            for i in range(40):
                file[f"f{i}"] = np.full((3, 2), i, "f4")
                file[f"i{i}"] = np.full((3, 2), i, "i4")
                file[f"s{i}"] = np.full((2, 3), i, "f4")

        check(made(fill))

    def test_many_members(self):
        def fill(file):
            group = file.create_group("many")
            for i in range(3000):
                group[f"{i * 7919 % 3000}"] = np.float32(i)
            for i in range(0, 3000, 3):  # keys of the tree remain whose names are gone
                del group[f"{i}"]

        assert len(check(made(fill)).groups["many"]) == 2000

    def test_names(self):
        def fill(file):
            for name in ("a b", "..", "...", ".hidden", "x" * 3000, "w/v", "~", "0", "10", "9", "'", "b:0"):
                file[name] = np.ones(2, "f4")

        check(made(fill))

    def test_names_beyond_ascii(self):
        """h5py moves a group to another structure for such a name; only C programs write it in the classic one."""

        def fill(file):
            for name in (b"sch\xc3\xb6n", b"\xe5\xb1\xa4"):
                space = h5py.h5s.create_simple((2,))
                h5py.h5d.create(file.id, name, h5py.h5t.IEEE_F32LE, space).write(
                    h5py.h5s.ALL, h5py.h5s.ALL, np.ones(2, "f4")
                )

        assert list(check(made(fill)).records) == ["schön", "層"]
        assert index(made(lambda file: file.create_group("schön"))) is None

    def test_large_headers(self):
        """Attributes that nearly fill the file, spread over several chunks of one header."""

        def fill(file):
            for i in range(6):
                file.attrs[f"layer_names{i}"] = np.array([b"n" * 600] * 100)

        assert len(check(made(fill)).texts) == 6

    def test_large_configuration(self):
        """A string of several MB shares the heap with the names."""

        def fill(file):
            for i in range(3):
                file.create_group(f"{i}").attrs["name"] = f"before {i}"
            file.attrs["model_config"] = "x" * (3 << 20)
            for i in range(3, 6):
                file.create_group(f"{i}").attrs["name"] = f"after {i}"

        check(made(fill))

    def test_empty(self):
        assert check(made(lambda file: None)).groups == {"": ()}

    @cases(40)
    @given(st.data())
    def test_any_tree(self, data):
        names = st.text(
            st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="/"), min_size=1, max_size=12
        )
        shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
        leaves = st.tuples(shapes, st.sampled_from(["f4", "f2", "f8", "i1", "i8", "u4", "?"]))
        trees = st.recursive(leaves, lambda below: st.dictionaries(names, below, max_size=5), max_leaves=12)
        tree = data.draw(st.dictionaries(names, trees, max_size=8))

        def fill(group, tree=tree):
            for name, below in tree.items():
                if name == ".":
                    continue
                if isinstance(below, dict):
                    fill(group.create_group(name), below)
                else:
                    group[name] = np.zeros(*below)

        check(made(fill))


def fill_chunked(file):
    file.create_dataset("x", data=np.ones((8, 8), "f4"), chunks=(4, 4))


def fill_gzip(file):
    file.create_dataset("x", data=np.ones((8, 8), "f4"), compression="gzip")


def fill_big_endian(file):
    file["x"] = np.ones(3, ">f4")


def fill_soft(file):
    file["x"] = np.ones(3, "f4")
    file["y"] = h5py.SoftLink("/x")


def fill_external_link(file):
    file["y"] = h5py.ExternalLink("other.h5", "/x")


def fill_alias(file):
    file["x"] = np.ones(3, "f4")
    file["y"] = file["x"]


def fill_cycle(file):
    file.create_group("a")["again"] = file["/"]


def fill_external_storage(file):
    file.create_dataset("x", (3,), "f4", external=[("other.bin", 0, 12)])


def fill_virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset("x", layout)


def fill_strings(file):
    file["x"] = ["a", "b"]


def fill_fixed_strings(file):
    file["x"] = np.array([b"a", b"b"])


def fill_never_written(file):
    file.create_dataset("x", (3, 4), "f4")


def fill_compound(file):
    file["x"] = np.ones(3, "c8")


def fill_enumeration(file):
    file.create_dataset("x", data=[0, 1], dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i1"))


def fill_named_type(file):
    file["t"] = np.dtype("f4")
    file.create_dataset("x", data=np.ones(3, "f4"), dtype=file["t"])


def fill_null(file):
    file["x"] = h5py.Empty("f4")


def fill_wide_opaque(file):
    file["x"] = np.zeros(3, "V3")


def fill_tagged_opaque(file):
    file.create_dataset("x", data=np.zeros(2, "M8[s]").astype(h5py.opaque_dtype("M8[s]")))


def fill_number_as_name(file):
    file.attrs["layer_names"] = [1, 2]


def fill_matrix_of_names(file):
    file.attrs["layer_names"] = np.array([[b"a"], [b"b"]])


def fill_not_utf8(file):
    file.attrs["layer_names"] = np.array([b"a\xff"])


def fill_null_name(file):
    file.attrs["layer_names"] = h5py.Empty("f4")


def fill_many_attributes(file):
    group = file.create_group("a", track_order=True)
    for i in range(20):
        group.attrs[f"a{i}"] = i


class TestRefused:
    """Files that are not ordinary are left to h5py."""

    @pytest.mark.parametrize(
        "fill",
        [value for name, value in sorted(globals().items()) if name.startswith("fill_")],
        ids=lambda f: f.__name__,
    )
    def test_content(self, fill):
        assert index(made(fill)) is None

    @pytest.mark.parametrize(
        "options", [{"libver": "latest"}, {"libver": "v108"}, {"track_order": True}, {"fs_strategy": "page"}]
    )
    def test_other_structure(self, options):
        assert index(made(ordinary, **options)) is None

    def test_not_hdf5(self):
        for raw in (b"", b"\x89HDF\r\n\x1a\n", b"PK\3\4" * 5000, bytes(100_000)):
            assert index(raw) is None

    def test_cut(self):
        raw = made(ordinary)
        assert all(index(raw[:size]) is None for size in [*range(0, len(raw), 997), len(raw) - 1])

    def test_shrinks_while_read(self):
        raw = made(ordinary)
        for limit in range(0, len(raw), 1499):
            short = raw[:limit]
            contents = read_contents(lambda o, n, s=short: s[o : o + n], base=0, size=len(raw), limits=Limits())
            assert contents is None or limit > 16384 or len(raw) <= 16384

    def test_errors_of_read_pass(self):
        def read(offset, nbytes):
            raise OSError(5, "Input/output error")

        with pytest.raises(OSError, match="Input/output"):
            read_contents(read, base=0, size=10_000, limits=Limits())


class TestLimits:
    """The last allowed value of each limit, and the first that is not."""

    def outcomes(self, raw, **limits):
        name, value = limits.popitem()
        return [index(raw, limits=replace(Limits(), **{name: value + step})) is not None for step in (-1, 0)]

    def test_objects(self):
        raw = made(lambda file: [file.create_dataset(f"g/{i}", data=np.float32(i)) for i in range(9)])
        assert self.outcomes(raw, max_objects=10) == [False, True]

    def test_depth(self):
        assert self.outcomes(made(lambda file: file.create_group("a/b/c/d")), max_depth=4) == [False, True]

    def test_text(self):
        def fill(file):
            file.attrs["layer_names"] = np.array([b"abc", b"de"])
            file.attrs["weight_names"] = ["fgh"]

        assert self.outcomes(made(fill), max_text_bytes=8) == [False, True]


class TestDamage:
    """Files with false declarations."""

    def patched(self, raw, old, new, count=1):
        assert raw.count(old) >= 1
        return raw.replace(old, new, count)

    def test_overlap(self):
        def fill(file):
            file["a"] = np.ones(64, "f4")
            file["b"] = np.ones(64, "f4")

        raw = made(fill)
        a, b = (index(raw).records[key].extents[0].offset for key in "ab")
        field = struct.pack("<BBQQ", 3, 1, b, 256)
        for place in (a - 255, a - 8, a, a + 8, a + 255, a + 256, b):
            answered = place in {a + 256, b}
            moved = self.patched(raw, field, struct.pack("<BBQQ", 3, 1, place, 256))
            assert (index(moved) is not None) == answered

    @pytest.mark.parametrize("address", [-1, -2, -256, -255, 1 << 63, "end", "end+1", 1 << 40])
    def test_data_outside(self, address):
        raw = made(lambda file: file.create_dataset("a", data=np.ones(64, "f4")))
        offset = index(raw).records["a"].extents[0].offset
        if isinstance(address, str):
            address = len(raw) - 256 + (address == "end+1")
        moved = self.patched(raw, struct.pack("<QQ", offset, 256), struct.pack("<QQ", address % 2**64, 256))
        assert (index(moved) is None) == (address != len(raw) - 256)

    def test_declared_shape(self):
        """A shape that the data does not fill, or that overflows 64 bits."""
        raw = made(lambda file: file.create_dataset("a", data=np.ones((3, 5), "f4")))
        dims = struct.pack("<QQQQ", 3, 5, 3, 5)
        for rows, columns in ((3, 6), (1 << 62, 1 << 62), (1 << 63, 2), (2**64 - 1, 0)):
            assert index(self.patched(raw, dims, struct.pack("<QQQQ", rows, columns, rows, columns))) is None

    def test_continuation_loop(self):
        """A header whose second chunk is continued by itself, with the count of messages to match."""
        raw = bytearray(made(lambda file: file.create_group("a").attrs.create("name", "x")))
        at = raw.find(struct.pack("<HHI", 0x10, 16, 0))
        chunk, _ = struct.unpack_from("<QQ", raw, at + 8)
        struct.pack_into("<HHIQQ", raw, chunk, 0x10, 16, 0, chunk, 24)
        struct.pack_into("<QQ", raw, at + 8, chunk, 24)
        struct.pack_into("<H", raw, at - 14, 65535)
        assert index(raw) is None

    def test_tree_loop(self):
        """A tree node that is its own child, on all the levels that it can claim."""
        raw = bytearray(made(lambda file: file.create_group("a")))
        at = raw.find(b"TREE")
        for level in range(256):
            raw[at + 5] = level
            struct.pack_into("<H", raw, at + 6, 32)
            for child in range(32):
                struct.pack_into("<Q", raw, at + 32 + 16 * child, at)
            assert index(raw) is None

    def test_bytes_changed_at_random(self):
        """Thousands of damaged files: no exception, no endless walk, no extent outside, no overlap."""
        raw = made(ordinary)
        chooser = random.Random(20240607)
        used = [position for position, byte in enumerate(raw) if byte]
        words = [struct.unpack_from("<Q", raw, position)[0] for position in range(0, len(raw) - 7, 8)]
        values = [*{word for word in words if word < len(raw)}, 0, 2**64 - 1, 1 << 63, len(raw), len(raw) - 8, 1 << 32]
        answered = 0
        for _ in range(3000 * TIMES):
            damaged = bytearray(raw)
            for _ in range(chooser.choice([1, 1, 1, 2, 5])):
                position = chooser.choice(used)
                if chooser.random() < 0.5:
                    struct.pack_into("<Q", damaged, min(position & ~7, len(raw) - 8), chooser.choice(values))
                else:
                    damaged[position] = chooser.randrange(256)
            answered += self.check_sane(damaged)
        assert answered > 100  # a change in tensor data or a name does no harm

    @cases(300, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
    def test_bytes_overwritten(self, changes):
        damaged = bytearray(self.RAW)
        for position, data in changes:
            start = position % (len(damaged) - len(data))
            damaged[start : start + len(data)] = data
        self.check_sane(damaged)

    RAW = made(ordinary)

    @staticmethod
    def check_sane(damaged):
        """Index a damaged file; all that is found must be inside of it, and nothing twice."""
        nread = 0

        def read(offset, nbytes):
            nonlocal nread
            nread += nbytes
            assert offset >= 0 and nbytes >= 0 and offset + nbytes <= len(damaged) and nread < 200 * len(damaged)
            return bytes(damaged[offset : offset + nbytes])

        contents = read_contents(read, base=0, size=len(damaged), limits=Limits())
        if contents is None:
            return False
        extents = [extent for record in contents.records.values() for extent in record.extents]
        extents.sort(key=lambda extent: extent.offset)
        end = 0
        for extent in extents:
            assert end <= extent.offset and extent.nbytes > 0
            end = extent.offset + extent.nbytes
        assert end <= len(damaged)
        for record in contents.records.values():
            assert record.nbytes == sum(extent.nbytes for extent in record.extents)
        return True
