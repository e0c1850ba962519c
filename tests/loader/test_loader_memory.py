"""Many loads take no more memory than a few."""

import itertools
import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

import fastassign as fa

CHILD = """
import gc, json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
import fastassign as fa

def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))

paths, sizes = sys.argv[1:3], json.loads(sys.argv[3])
layers = [keras.layers.Dense(n, use_bias=False, kernel_initializer="zeros") for n in sizes[1:]]
model = keras.Sequential([keras.Input((sizes[0],)), *layers])
loader = fa.Loader(model)
figures = {}
for how in ("load", "load_async"):
    loads = figures[how] = []
    for turn in range(10):
        path = paths[turn % 2]
        gc.collect()
        before = status("VmRSS")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the high-water mark begins anew
        report = loader.load(path) if how == "load" else loader.load_async(path).result()
        loads.append({"before": before, "peak": status("VmHWM"), "after": status("VmRSS")})
        for variable in model.variables:  # one at a time: an array is a copy
            assert set(variable.numpy().reshape(-1)[::997].tolist()) == {1 + turn % 2}
figures["bytes"] = report.nbytes
print(json.dumps(figures), flush=True)
loader.load_async(paths[0])  # the process ends while it runs
"""

# Of the C library: memory of this size goes back to the system when it is freed, and is not kept in a heap that has
# holes. What is resident is then what somebody holds; TensorFlow's own pool, with oneDNN, keeps what it has.
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


@pytest.mark.slow
@pytest.mark.parametrize("onednn", ["0", "1"])
def test_ten_loads_take_no_more_memory_than_two(onednn, tmp_path):
    """100 MB, in a process of its own, which ends while a load is under way; with both of TensorFlow's allocators."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not reset the high-water mark of memory")
    sizes, paths = [2048, 2048, 4096, 2048, 1024], [tmp_path / f"{n}.weights.h5" for n in (1, 2)]
    for value, path in enumerate(paths, 1):
        with h5py.File(path, "w") as file:
            file.create_group("vars")
            for i, shape in enumerate(itertools.pairwise(sizes)):
                file[f"layers/dense{f'_{i}' if i else ''}/vars/0"] = np.full(shape, value, "f4")
    smallest = 4 * min(one * other for one, other in itertools.pairwise(sizes))
    try:
        command = [sys.executable, "-c", CHILD, *map(str, paths), json.dumps(sizes)]
        environment = {**os.environ, **EXACT, "TF_ENABLE_ONEDNN_OPTS": onednn}
        child = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    finally:
        for path in paths:
            path.unlink()
    assert child.returncode == 0, child.stderr[-3000:]
    assert "Exception ignored" not in child.stderr
    figures = json.loads(child.stdout.splitlines()[-1])
    assert figures["bytes"] > 80 << 20
    most = figures["bytes"] + fa.LoadOptions().window_bytes
    for loads in (figures["load"], figures["load_async"]):
        assert max(load["peak"] for load in loads[2:]) - loads[2]["before"] < most, figures
        # What the first few leave, the pool's growth included, the others leave too: not one variable more.
        early, late = (max(load["after"] for load in part) for part in (loads[:5], loads[5:]))
        assert late - early < smallest, figures
