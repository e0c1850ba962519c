"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

import fastassign
from fastassign.cli import app, main

runner = CliRunner()


@pytest.fixture
def saved(tmp_path):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
    model.save_weights(tmp_path / "m.weights.h5")
    model.save(tmp_path / "m.keras")
    return tmp_path


@pytest.fixture
def run_main(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastassign", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_inspect_lists_every_tensor(saved):
    result = runner.invoke(app, ["inspect", str(saved / "m.weights.h5")])
    assert result.exit_code == 0
    for key in ("layers/dense/vars/0", "layers/dense_1/vars/1", "(4, 3)", "<f4"):
        assert key in result.stdout


def test_inspect_json_is_the_catalog(saved):
    result = runner.invoke(app, ["inspect", "--json", str(saved / "m.keras")])
    data = json.loads(result.stdout)
    assert data == fastassign.inspect(saved / "m.keras").to_dict()
    assert {tensor["key"] for tensor in data["tensors"]} >= {"layers/dense/vars/0", "layers/dense_1/vars/1"}


def test_inspect_names_what_is_refused(tmp_path):
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["a"] = np.ones(3, "f4")
        file["b"] = h5py.SoftLink("/a")
    result = runner.invoke(app, ["inspect", str(tmp_path / "links.h5")])
    assert result.exit_code == 0
    assert "refused" in result.stdout
    assert "soft-link" in result.stdout


def test_inspect_needs_no_tensorflow(saved):
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        f"sys.argv = ['fastassign', 'inspect', {str(saved / 'm.weights.h5')!r}]\n"
        "from fastassign.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "layers/dense/vars/0" in done.stdout


@pytest.mark.parametrize("command", [["plan", "x.h5", "--model", "m.keras"], ["demo"], ["bench"]])
def test_without_tensorflow_it_says_what_to_install(command):
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        f"sys.argv = ['fastassign', *{command!r}]\n"
        "from fastassign.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install fastassign[tensorflow]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["missing.h5", "text.h5", "folder.h5"])
def test_a_bad_file_is_one_clear_line(tmp_path, run_main, name):
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "folder.h5").mkdir()
    code, _, err = run_main("inspect", tmp_path / name)
    assert code == 1
    assert "Traceback" not in err
    assert name in err
    assert "hint: " in err


def test_plan_of_a_model_that_fits(saved):
    result = runner.invoke(app, ["plan", str(saved / "m.weights.h5"), "--model", str(saved / "m.keras")])
    assert result.exit_code == 0, result.output
    assert "a/kernel" in result.stdout
    assert "layers/dense/vars/0" in result.stdout


def test_plan_json(saved):
    arguments = ["plan", str(saved / "m.weights.h5"), "--model", str(saved / "m.keras"), "--json"]
    data = json.loads(runner.invoke(app, arguments).stdout)
    assert data["bytes"] == 4 * (4 * 3 + 3 + 3 * 2 + 2)
    assert {tensor["variable"] for tensor in data["tensors"]} == {"a/kernel", "a/bias", "b/kernel", "b/bias"}


MODULE = """
import keras
def small():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="a"), keras.layers.Dense(2, name="b")])
"""


def test_plan_of_a_model_that_does_not_fit_exits_with_1(saved, monkeypatch):
    (saved / "my_models.py").write_text(MODULE)
    monkeypatch.chdir(saved)
    result = runner.invoke(app, ["plan", "m.weights.h5", "--model", "my_models:small"])
    assert result.exit_code == 1
    assert "objects could not be loaded" in result.output
    assert "hint: skip_mismatch=True" in result.output


@pytest.mark.parametrize("source", ["nothing", "no_such_module:f", "json:no_such_function"])
def test_a_model_that_can_not_be_made_is_a_usage_error(saved, source):
    result = runner.invoke(app, ["plan", str(saved / "m.weights.h5"), "--model", source])
    assert result.exit_code == 2
    assert source in result.output


def test_doctor_tells_versions_rates_and_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("fastassign.doctor._PROBE_BYTES", 8 << 20)
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0
    for word in ("versions:", "h5py", "tensorflow:", "page cache:", "GB/s", "storage:", "index cache:"):
        assert word in result.stdout


def test_help_of_every_command():
    for command in ("inspect", "plan", "bench", "doctor", "demo"):
        result = runner.invoke(app, [command, "--help"], env={**os.environ, "TERM": "dumb"})
        assert result.exit_code == 0
        assert "Usage" in result.stdout
