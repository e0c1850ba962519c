"""Hostile weight files, one builder for each rule of the policy (docs/policy.md).

Each builder writes the Keras 3 weights of ``victim()`` with one thing wrong, near the kernel of its only layer
unless the name says otherwise. Apart from what is wrong the file is one that stock Keras loads.
"""

import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5o, h5p, h5s, h5t, h5z

VARS = "layers/dense/vars"
KERNEL_KEY = f"{VARS}/0"
BIAS_KEY = f"{VARS}/1"
KERNEL = (np.arange(12, dtype="<f4") + 0.5).reshape(4, 3)
BIAS = np.array([-1.0, np.inf, 3e-40], dtype="<f4")

TERABYTE = 1 << 40


@dataclass(frozen=True)
class Attack:
    """A hostile file and what should become of it.

    ``rule`` and ``tensor`` are what the error names, ``option`` whether the rule can be switched off, ``stock``
    how stock's own text begins where stock refuses too, ``loads`` whether the model takes the file once it may.
    """

    name: str
    build: Callable[[Path], None]
    rule: str
    tensor: str | None
    option: bool
    stock: str | None
    loads: bool


ATTACKS: list[Attack] = []


def attack(rule, *, tensor=KERNEL_KEY, option=True, stock=None, loads=True):
    def register(build):
        ATTACKS.append(Attack(build.__name__, build, rule, tensor, option, stock, loads))
        return build

    return register


def write(path, *, kernel=KERNEL, bias=BIAS, **how):
    """Write the file as it should be; ``None`` leaves a dataset out. Return it open."""
    file = h5py.File(path, "w", **how)
    file.create_group("vars")
    group = file.create_group(VARS)
    for name, values in (("0", kernel), ("1", bias)):
        if values is not None:
            group[name] = values
    return file


def off_the_classic_lane(file):
    """Add what only h5py reads."""
    file.create_dataset("elsewhere", data=np.ones(8, "f4"), chunks=(4,))


def patch(path, old, new, *, count=1):
    """Overwrite bytes that must occur ``count`` times, once or more, in the file."""
    content = bytearray(Path(path).read_bytes())
    assert len(old) == len(new)
    assert content.count(old) == count, f"{old!r} occurs {content.count(old)} times"
    Path(path).write_bytes(content.replace(old, new))


def address(path, key):
    """Return the offset of a contiguous dataset."""
    with h5py.File(path) as file:
        return file[key].id.get_offset()


def move(path, key, offset):
    """Let the layout message of a contiguous dataset point somewhere else."""
    with h5py.File(path) as file:
        old, nbytes = file[key].id.get_offset(), file[key].id.get_storage_size()
    patch(path, struct.pack("<QQ", old, nbytes), struct.pack("<QQ", offset, nbytes))


def settle(*paths):
    """Give files a time well before now, so that their indexes may be cached at once."""
    for path in paths:
        status = os.stat(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 5_000_000_001))
    time.sleep(0.03)  # the change of the inode counts too


# Links.


@attack("soft-link", stock="Not allowed: H5 file with SoftLink")
def soft_link_to_a_dataset(path):
    with write(path, kernel=None) as file:
        file["hidden"] = KERNEL
        file[KERNEL_KEY] = h5py.SoftLink("/hidden")


@attack("soft-link", tensor=VARS, stock="Not allowed: H5 file with SoftLink")
def soft_link_to_a_group(path):
    with write(path) as file:
        file.move(VARS, "layers/dense/real")
        file[VARS] = h5py.SoftLink("/layers/dense/real")


@attack("soft-link", tensor="layers", stock="Not allowed: H5 file with SoftLink")
def soft_link_on_the_way(path):
    with write(path) as file:
        file.move("layers", "zzz")
        file["layers"] = h5py.SoftLink("/zzz")


@attack("external-link", stock="Not allowed: H5 file with ExternalLink")
def external_link_to_a_dataset(path):
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        # The same bytes stand at the same offset of the file itself, with other values.
        file["secret"] = KERNEL
    with write(path, kernel=None) as file:
        file["decoy"] = np.zeros(4000, "u1")
        file[KERNEL_KEY] = h5py.ExternalLink(str(other), "/secret")


@attack("external-link", tensor=VARS, stock="Not allowed: H5 file with ExternalLink")
def external_link_to_a_group(path):
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["0"], file["1"] = KERNEL, BIAS
    with write(path) as file:
        del file[VARS]
        file[VARS] = h5py.ExternalLink(str(other), "/")


@attack("user-defined-link", option=False)
def link_of_a_user_defined_class(path):
    with write(path, kernel=None) as file:
        file[KERNEL_KEY] = h5py.ExternalLink("marker_file", "/p")
    # Link message, version 1: flags, link type, length of the name, name, length of the value, value.
    link = b"\x01\x08%c\x010\x10\x00\x00marker_file"
    patch(path, link % 64, link % 187)


# Storage.


@attack("external-storage", stock="Not allowed: H5 file with external Dataset: ")
def external_storage(path):
    raw = path.with_name("raw.bin")
    raw.write_bytes(KERNEL.tobytes())
    with write(path, kernel=None) as file:
        file.create_dataset(KERNEL_KEY, (4, 3), "<f4", external=[(str(raw), 0, KERNEL.nbytes)])


@attack("external-storage", stock="Not allowed: H5 file with external Dataset: ")
def external_storage_with_an_address(path):
    external_storage(path)
    undefined = struct.pack("<qQ", -1, KERNEL.nbytes)
    patch(path, undefined, struct.pack("<qQ", 96, KERNEL.nbytes))


@attack("virtual-dataset", stock="Not allowed: H5 file with virtual Dataset")
def virtual_dataset(path):
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["secret"] = KERNEL
    layout = h5py.VirtualLayout((4, 3), "<f4")
    layout[:] = h5py.VirtualSource(str(other), "secret", (4, 3))
    with write(path, kernel=None) as file:
        file.create_virtual_dataset(KERNEL_KEY, layout)


@attack("virtual-dataset", stock="Not allowed: H5 file with virtual Dataset")
def virtual_dataset_of_the_same_file(path):
    with write(path, kernel=None) as file:
        file["hidden"] = KERNEL
        layout = h5py.VirtualLayout((4, 3), "<f4")
        layout[:] = h5py.VirtualSource(file["hidden"])
        file.create_virtual_dataset(KERNEL_KEY, layout)


# Dtypes.


@attack("dtype", option=False)
def object_references(path):
    with write(path, kernel=None) as file:
        file.create_dataset(KERNEL_KEY, (4, 3), h5py.ref_dtype)


@attack("dtype", option=False)
def variable_length_arrays(path):
    with write(path, kernel=None) as file:
        file.create_dataset(KERNEL_KEY, (4, 3), h5py.vlen_dtype("f4"))


@attack("dtype", option=False)
def variable_length_strings(path):
    with write(path, kernel=None) as file:
        file.create_dataset(KERNEL_KEY, (4, 3), h5py.string_dtype())


@attack("dtype", option=False)
def fixed_length_strings(path):
    with write(path, kernel=np.full((4, 3), b"1.0")):
        pass


@attack("dtype", option=False)
def compound(path):
    with write(path, kernel=np.zeros((4, 3), [("a", "f4"), ("b", "i4")])):
        pass


@attack("dtype", option=False)
def enumeration(path):
    with write(path, kernel=None) as file:
        kind = h5py.enum_dtype({"ZERO": 0, "ONE": 1}, basetype="i4")
        file.create_dataset(KERNEL_KEY, data=np.ones((4, 3), "i4"), dtype=kind)


@attack("dtype", option=False)
def array_elements(path):
    with write(path, kernel=None) as file:
        kind = h5t.array_create(h5t.IEEE_F32LE, (3,))
        h5d.create(file[VARS].id, b"0", kind, h5s.create_simple((4,)))


@attack("dtype", option=False)
def wide_opaque_elements(path):
    with write(path, kernel=np.zeros((4, 3), "V8")):
        pass


@attack("dtype", option=False)
def bit_fields(path):
    with write(path, kernel=None) as file:
        h5d.create(file[VARS].id, b"0", h5t.STD_B32LE, h5s.create_simple((4, 3)))


@attack("dtype", option=False)
def times(path):
    with write(path, kernel=None) as file:
        h5d.create(file[VARS].id, b"0", h5t.UNIX_D32LE, h5s.create_simple((4, 3)))


@attack("dtype", option=False)
def null_dataspace(path):
    with write(path, kernel=None) as file:
        file[KERNEL_KEY] = h5py.Empty("f4")


# Filters.


@attack("filter")
def lzf(path):
    with write(path, kernel=None) as file:
        file.create_dataset(KERNEL_KEY, data=KERNEL, compression="lzf")


@attack("filter")
def szip(path):
    with write(path, kernel=None) as file:
        file.create_dataset(KERNEL_KEY, data=KERNEL, compression="szip", chunks=(4, 3))


@attack("filter")
def scale_offset(path):
    with write(path, kernel=None) as file:
        file.create_dataset(KERNEL_KEY, data=np.floor(KERNEL), scaleoffset=4)


@attack("filter", loads=False)
def unknown_filter(path):
    with write(path, kernel=None) as file:
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_chunk((4, 3))
        creation.set_filter(32123, h5z.FLAG_OPTIONAL, (1, 2))
        dataset = h5d.create(file[VARS].id, b"0", h5t.IEEE_F32LE, h5s.create_simple((4, 3)), creation)
        dataset.write(h5s.ALL, h5s.ALL, KERNEL)


# Bombs. A model that has variables of this shape does not exist: these are found by the catalog.


@attack("expansion", stock="Not allowed: H5 dataset '0' declares ", loads=False)
def chunks_that_were_never_written(path):
    with write(path, kernel=None) as file:
        shape = (TERABYTE // 4,)
        file.create_dataset(KERNEL_KEY, shape, "<f4", chunks=(1 << 20,), compression="gzip", fillvalue=1.0)


@attack("expansion", stock="Not allowed: H5 dataset '0' declares ", loads=False)
def one_chunk_of_a_terabyte(path):
    with write(path, kernel=None) as file:
        file.create_dataset(KERNEL_KEY, (TERABYTE // 4,), "<f4", chunks=(1 << 16,), compression="gzip")
        file[KERNEL_KEY][:4] = 1.0


@attack("expansion", stock="Not allowed: H5 dataset '0' declares ", loads=False)
def fill_value_only(path):
    with write(path, kernel=None) as file:
        file.create_dataset(KERNEL_KEY, (TERABYTE // 4,), "<f4", fillvalue=2.0)


# Extents.


@attack("overlap", tensor=BIAS_KEY)
def overlapping_datasets(path):
    write(path).close()
    move(path, BIAS_KEY, address(path, KERNEL_KEY) + 4)


@attack("overlap", tensor=BIAS_KEY)
def overlapping_datasets_read_by_h5py(path):
    with write(path) as file:
        off_the_classic_lane(file)
    move(path, BIAS_KEY, address(path, KERNEL_KEY) + 4)


# Groups.


@attack("group-cycle", tensor="layers/dense", option=False)
def group_that_holds_itself(path):
    with write(path) as file:
        del file["layers/dense"]
        file["layers/dense"] = file["/"]


# Built for one test each; not in ATTACKS.


def damaged_group(path):
    """Write a file in which the object header of the layer's variables is wiped out."""
    with write(path) as file:
        header = h5o.get_info(file[VARS].id).addr
    content = bytearray(path.read_bytes())
    content[header : header + 16] = bytes(16)
    path.write_bytes(content)


def dangling_link(path):
    """Write a file whose kernel is a soft link to nothing."""
    with write(path, kernel=None) as file:
        file[KERNEL_KEY] = h5py.SoftLink("/nothing")


def two_names_of_one_dataset(path, **how):
    """Write a file for a model with two layers of the shape (3, 3), whose kernels are one dataset."""
    with h5py.File(path, "w", **how) as file:
        file.create_group("vars")
        for layer in ("dense", "dense_1"):
            file.create_group(f"layers/{layer}/vars")["1"] = BIAS + len(layer)
        file["layers/dense/vars/0"] = KERNEL[:3]
        file["layers/dense_1/vars/0"] = file["layers/dense/vars/0"]


def two_names_of_one_group(path, **how):
    """Write a file for the same model, whose layers are one group."""
    with h5py.File(path, "w", **how) as file:
        file.create_group("vars")
        group = file.create_group("layers/dense/vars")
        group["0"], group["1"] = KERNEL[:3], BIAS
        file["layers/dense_1"] = file["layers/dense"]


def soft_link_to_an_external_link(path):
    """Write a file whose kernel is behind a soft link that an external link continues."""
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["secret"] = KERNEL
    with write(path, kernel=None) as file:
        file["door"] = h5py.ExternalLink(str(other), "/secret")
        file[KERNEL_KEY] = h5py.SoftLink("/door")


def many_bombs(path, count):
    """Write datasets that declare 255 MiB each, just below the floor, and store nothing."""
    with write(path) as file:
        for i in range(count):
            file.create_dataset(f"bombs/{i:03}", (255 << 18,), "<f4", chunks=(1 << 18,), compression="gzip")


def past_the_end(path, *, by_h5py=False):
    """Write a file whose kernel begins inside the file and ends outside."""
    with write(path) as file:
        if by_h5py:
            off_the_classic_lane(file)
    move(path, KERNEL_KEY, path.stat().st_size - 8)


def far_past_the_end(path, *, by_h5py=False):
    """Write a file whose kernel stands near the end of the address space."""
    with write(path) as file:
        if by_h5py:
            off_the_classic_lane(file)
    move(path, KERNEL_KEY, (1 << 64) - 32)


def deep_groups(path, depth):
    """Write groups inside groups."""
    with write(path) as file:
        file.create_group("/".join(["g"] * depth))


def many_links(path, count):
    """Write many names of one group."""
    with write(path) as file:
        group, empty = file.create_group("many"), file.create_group("empty")
        for i in range(count):
            group[f"{i}"] = empty


def long_names(path, count, length):
    """Write the legacy layout with an attribute of long names."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([b"%0*d" % (length, i) for i in range(count)])


def group_bomb(path, depth):
    """Write groups that hold the next one twice: 2 to the power of ``depth`` paths in a small file."""
    with write(path) as file:
        group = file.create_group("bomb")
        for _ in range(depth):
            inner = group.create_group("a")
            group["b"] = inner
            group = inner
