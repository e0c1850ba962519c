"""What importing the package brings along, and what works without TensorFlow. In processes of their own."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from support import attacks

HEAVY = {"tensorflow", "keras", "tf_keras", "rich", "numba", "typer", "ml_dtypes", "cuda"}


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


LOADED = "\nimport json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


@pytest.mark.slow
def test_importing_brings_nothing_heavy():
    assert HEAVY.isdisjoint(run("import fastassign" + LOADED))
    assert "tensorflow" in run("import fastassign.assigning.host.memory" + LOADED)


def test_inspecting_brings_nothing_heavy(tmp_path):
    path = tmp_path / "model.weights.h5"
    attacks.write(path).close()
    code = "import sys, fastassign; print(fastassign.inspect(sys.argv[1]))"
    assert HEAVY.isdisjoint(run(code + LOADED, path))


def test_the_file_tools_work_where_tensorflow_can_not_be_imported(tmp_path):
    path = tmp_path / "model.weights.h5"
    with attacks.write(path) as file:
        file.create_dataset("chunked", data=np.arange(6.0), chunks=(2,), compression="gzip")
        file["link"] = h5py.SoftLink("/chunked")
        file.create_dataset("bfloat16", data=np.ones(3, "<u2").view("V2")).attrs["dtype"] = "bfloat16"
    code = (
        "import json, sys\n"
        "for name in ('tensorflow', 'keras', 'tf_keras'): sys.modules[name] = None\n"
        "import fastassign as fa\n"
        "catalog = fa.inspect(sys.argv[1])\n"
        "str(catalog), repr(catalog)\n"
        "print(json.dumps([catalog.to_dict(), [catalog[key].read().tobytes().hex() for key in catalog]]))\n"
    )
    data, read = run(code, path)
    assert [entry["key"] for entry in data["refused"]] == ["link"]
    with h5py.File(path) as file:
        assert read == [file[entry["key"]][()].tobytes().hex() for entry in data["tensors"]]
    assert len(read) == 4


def test_loading_says_what_is_missing(tmp_path):
    path = tmp_path / "model.weights.h5"
    attacks.write(path).close()
    code = (
        "import json, sys\n"
        "import fastassign as fa\n"
        "try: fa.load_weights(object(), sys.argv[1])\n"
        "except TypeError as error: print(json.dumps([str(error), 'tensorflow' in sys.modules]))\n"
    )
    assert run(code, path) == ["model must be a Keras or tf_keras model, or variables, not object", False]


def test_the_public_names():
    code = (
        "import fastassign, json\n"
        "print(json.dumps([name for name in fastassign.__all__ if getattr(fastassign, name, None) is None]))"
    )
    assert run(code) == []
