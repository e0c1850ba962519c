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


@pytest.fixture
def planned(saved, monkeypatch):
    """Plan a load of a legacy file of the layers a and b by the command, for a model of the layers c and b."""
    keras = pytest.importorskip("keras")
    keras.models.load_model(saved / "m.keras").save(saved / "m.h5")
    (saved / "my_models.py").write_text(MODULE + RENAMED)
    monkeypatch.chdir(saved)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)

    def plan(*arguments):
        return runner.invoke(app, ["plan", "m.h5", "--model", "my_models:renamed", *arguments])

    return plan


RENAMED = """
def renamed():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="c"), keras.layers.Dense(2, name="b")])
def broken():
    raise ZeroDivisionError("in the model")
def number():
    return 3
"""


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        (["--rename", "a=c"], {"c/kernel", "c/bias", "b/kernel", "b/bias"}),
        (["--include", "b"], {"b/kernel", "b/bias"}),
        (["--exclude", "c", "--exclude", "*/bias"], {"b/kernel"}),
        (["--rename", "a=c", "--include", "c"], {"c/kernel", "c/bias"}),
        (["--by-name"], {"b/kernel", "b/bias"}),
    ],
)
def test_plan_takes_the_options_of_a_load(planned, options, variables):
    result = planned(*options, "--json")
    assert result.exit_code == 0, result.output
    planned_paths = [tensor["variable"] for tensor in json.loads(result.stdout)["tensors"]]
    assert {"/".join(path.split("/")[-2:]) for path in planned_paths} == variables


def test_plan_reshapes(planned):
    with h5py.File("m.h5", "r+") as file:
        (group,) = (file["model_weights/a"][name] for name in file["model_weights/a"])
        kernel = group["kernel"][()]
        del group["kernel"]
        group["kernel"] = kernel.reshape(1, -1)
    options = ["--rename", "a=c"]
    assert planned(*options).exit_code == 1
    result = planned(*options, "--reshape")
    assert result.exit_code == 0, result.output
    assert "reshape" in result.stdout


def test_plan_skips_mismatches(saved, monkeypatch):
    (saved / "my_models.py").write_text(MODULE)
    monkeypatch.chdir(saved)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    result = runner.invoke(app, ["plan", "m.weights.h5", "--model", "my_models:small", "--skip-mismatch"])
    assert result.exit_code == 0, result.output
    assert "skipped: " in result.stdout


def test_a_mismatch_as_json_has_both_sides(planned):
    result = planned("--json", "--include", "c")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["file"] == "m.h5" and found["mismatch"]
    assert {row["present"] for row in found["diff"]} == {"c"}
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--rename", "a"], "'a' is not OLD=NEW"),
        (["--rename", "a=b", "--rename", "a=c"], "'a' gets two names"),
        (["--model", "my_models:broken"], "my_models:broken raised ZeroDivisionError: in the model"),
        (["--model", "my_models:number"], "did not return a model, but an object of type int"),
        (["--model", "my_models:keras"], "not a function"),
    ],
)
def test_wrong_options_are_usage_errors(planned, options, text):
    result = planned(*options)
    assert result.exit_code == 2
    assert text in " ".join(result.output.replace("│", " ").split())


def test_a_model_file_that_is_missing_or_damaged_is_named(saved, run_main):
    (saved / "text.keras").write_text("no archive")
    for name, text in (("missing.keras", "no such file: "), ("text.keras", "Malformed: ")):
        code, _, err = run_main("plan", saved / "m.weights.h5", "--model", saved / name)
        assert code == 1
        assert text in err and name in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing.h5", "NotFound: no such file: "),
        ("text.h5", "Malformed: not an HDF5 file: "),
        ("folder.h5", "NotAFile: this is a directory: "),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_what_is_wrong_with_a_file_is_said_in_words(tmp_path, run_main, command, name, text):
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "folder.h5").mkdir()
    keras = pytest.importorskip("keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(tmp_path / "m.keras")
    model = ["--model", tmp_path / "m.keras"] if command == "plan" else []
    code, _, err = run_main(command, tmp_path / name, *model)
    assert code == 1
    assert err.startswith(f"{text}{tmp_path / name}\n")
    assert "synchronously" not in err


def test_inspect_filters(saved):
    file = str(saved / "m.weights.h5")
    result = runner.invoke(app, ["inspect", file, "--include", "layers/dense_1", "--exclude", "*/1"])
    assert "layers/dense_1/vars/0" in result.stdout and "1 of 4 tensors, 24 bytes" in result.stdout
    assert "layers/dense/" not in result.stdout and "layers/dense_1/vars/1" not in result.stdout
    data = json.loads(runner.invoke(app, ["inspect", file, "--exclude", "layers/dense", "--json"]).stdout)
    assert [tensor["key"] for tensor in data["tensors"]] == ["layers/dense_1/vars/0", "layers/dense_1/vars/1"]
    assert data["bytes"] == sum(tensor["bytes"] for tensor in data["tensors"])
    result = runner.invoke(app, ["inspect", file, "--include", "nothing"])
    assert result.exit_code == 2
    assert "matches no tensor" in result.output


def test_tables_fit_into_80_columns(tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("fastassign.doctor._PROBE_BYTES", 1 << 20)
    name = "a_layer_with_a_name_that_is_as_long_as_those_of_production_models_are"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name=name)])
    paths = [str(tmp_path / file) for file in ("m.keras", "m.h5")]
    for path in paths:
        model.save(path)
    (tmp_path / "other.py").write_text(
        f"import keras\n"
        f"def model(): return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, name={name!r})])\n"
    )
    monkeypatch.chdir(tmp_path)
    for path in paths:
        for command in (["inspect", path], ["plan", path, "--model", paths[0]]):
            lines = runner.invoke(app, command).stdout.splitlines()
            assert len(lines) >= 3 and max(map(len, lines)) <= 80
    diff = runner.invoke(app, ["plan", paths[1], "--model", "other:model"]).output.splitlines()
    start = next(number for number, line in enumerate(diff) if "in the file" in line)
    assert max(map(len, diff[start : start + 3])) <= 80
    assert max(map(len, str(fastassign.load_weights(model, paths[1])).splitlines())) <= 80
    assert max(map(len, runner.invoke(app, ["doctor"]).stdout.splitlines())) <= 80


def test_the_demo_shows_one_share(monkeypatch):
    from fastassign.benchmarks.cases import models

    monkeypatch.setattr(models, "demo_model", lambda: models.gpt_like(vocabulary=30, width=24, blocks=1, context=16))
    result = runner.invoke(app, ["demo"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "share of warm limit" in result.stdout
    assert result.stdout.count("fresh memory") == 1
    assert "% of the warm limit" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_doctor_tells_versions_rates_and_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("fastassign.doctor._PROBE_BYTES", 8 << 20)
    result = runner.invoke(app, ["doctor"])
    assert result.exit_code == 0
    for word in ("versions:", "h5py", "tensorflow:", "page cache:", "GB/s", "storage:", "index cache:"):
        assert word in result.stdout


def test_help_of_every_command():
    for command in ("inspect", "plan", "bench", "doctor", "demo", "run"):
        result = runner.invoke(app, [command, "--help"], env={**os.environ, "TERM": "dumb"})
        assert result.exit_code == 0
        assert "Usage" in result.stdout
