"""``fastassign.inspect``: a mapping of the tensors in a file."""

import json
from collections.abc import Mapping

import h5py
import numpy as np
import pytest

import fastassign as fa
from support import attacks


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.weights.h5"
    with attacks.write(path) as file:
        file["layers/other/vars/0"] = np.arange(6, dtype=">i4").reshape(2, 3)
        file["empty"] = np.zeros((0, 3), "f8")
        file["link"] = h5py.SoftLink("/empty")
    return path


@pytest.fixture
def catalog(path):
    return fa.inspect(path)


def test_it_is_a_mapping(catalog, path):
    assert isinstance(catalog, Mapping)
    assert set(catalog) == {attacks.KERNEL_KEY, attacks.BIAS_KEY, "layers/other/vars/0", "empty"}
    assert len(catalog) == 4
    assert attacks.KERNEL_KEY in catalog
    assert "link" not in catalog.contents.records
    assert "nothing" not in catalog
    assert catalog.nbytes == 48 + 12 + 24
    assert catalog.path == path
    assert str(fa.inspect(str(path)).path) == str(path)


def test_values(catalog):
    assert catalog[attacks.KERNEL_KEY].read().tobytes() == attacks.KERNEL.tobytes()
    other = catalog["layers/other/vars/0"].read()
    assert other.dtype == np.dtype("i4")
    assert other.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert catalog["empty"].read().shape == (0, 3)


def test_the_end_of_a_path_is_enough_if_it_is_unambiguous(catalog):
    assert catalog["dense/vars/0"].record.key == attacks.KERNEL_KEY
    assert catalog["vars/1"].record.key == attacks.BIAS_KEY
    with pytest.raises(KeyError, match="is ambiguous: 2 tensors of"):
        catalog["vars/0"]
    with pytest.raises(KeyError, match="is not a tensor of"):
        catalog["ars/1"]
    with pytest.raises(fa.Refused):
        catalog["link"]


def test_it_prints(catalog):
    lines = str(catalog).splitlines()
    assert lines[0] == f"Catalog {catalog.path} keras3 format, 4 tensors, 84 bytes"
    assert any(line.split() == [attacks.KERNEL_KEY, "(4,", "3)", "<f4", "raw"] for line in lines)
    assert any("contiguous, big-endian" in line for line in lines)
    assert lines[-1].startswith("link  refused: Not allowed: H5 file with SoftLink")
    assert repr(catalog) == f"<{lines[0]}>"
    assert repr(catalog["empty"]) == "<CatalogEntry empty (0, 3) <f8>"


def test_it_is_json(catalog):
    data = json.loads(json.dumps(catalog.to_dict()))
    assert data["format"] == "keras3"
    assert data["bytes"] == 84
    kernel = next(entry for entry in data["tensors"] if entry["key"] == attacks.KERNEL_KEY)
    assert (kernel["shape"], kernel["dtype"], kernel["bytes"], kernel["encoding"]) == ([4, 3], "<f4", 48, "raw")
    assert kernel["extents"] == [[attacks.address(catalog.path, attacks.KERNEL_KEY), 48]]


def test_a_file_that_changed_is_not_read(catalog, path):
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(fa.Changed, match="not the file that was indexed"):
        catalog[attacks.KERNEL_KEY].read()


@pytest.mark.parametrize(
    ("attributes", "group", "layout"),
    [
        ({"layer_names": [b"a"]}, None, "legacy"),
        ({"layer_names0": [b"a"]}, None, "legacy"),
        ({}, "layers", "keras3"),
        ({}, "vars", "keras3"),
        ({}, "_layer_checkpoint_dependencies", "keras3"),
        ({}, "something", "other"),
        ({"name": b"a"}, None, "other"),
    ],
)
def test_the_contents_tell_the_layout(tmp_path, attributes, group, layout):
    path = tmp_path / "any.h5"
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        if group:
            file.create_group(group)
    assert fa.inspect(path).format == layout


def test_files_that_can_not_be_opened(tmp_path):
    for path, kind in ((tmp_path / "none.h5", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(kind) as caught:
            fa.inspect(path)
        assert isinstance(caught.value, fa.FastAssignError)
        assert caught.value.file == str(path)
        with pytest.raises(OSError) as stock:
            h5py.File(path)
        assert type(stock.value) in type(caught.value).__mro__
        if path != tmp_path:  # h5py's error for a directory has a time in it
            assert str(caught.value) == str(stock.value)


def test_names_with_commands_for_the_terminal(tmp_path):
    path = tmp_path / "any.h5"
    with h5py.File(path, "w") as file:
        file["\x1b[2J\rclean"] = np.ones(2)
        file["\x1b]0;title\x07"] = h5py.SoftLink("/x")
        file["größe"] = np.ones(2)
    text = str(fa.inspect(path))
    assert "\\x1b[2J\\rclean" in text
    assert "größe" in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) == 5
