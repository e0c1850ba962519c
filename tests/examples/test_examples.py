"""Each script of examples/ runs as it is, and shows what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastassign

FOLDER = Path(__file__).parents[2] / "examples"

SHOWN = {
    "hot_swap": ["answers that were neither old nor new: 0", "the plan of the first load was kept"],
    "partial_load": ["head/kernel", "4 tensors, ", "loaded 4 variables", "the backbone is that of the file: True"],
    "progress": ["100 %", "40/40 variables", "assigned    40 variables"],
    "resume_training": ["the optimizer is at step 40"],
    "tf1_session": ["loaded 2 variables", "[9.0, 10.0, 11.0]", "operations added by the second load: 0"],
}


def run(script, tmp_path):
    place = os.pathsep.join([str(Path(fastassign.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{script}.py")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": place, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("fastassign-example-*"))
    return done.stdout


@pytest.mark.parametrize("script", SHOWN)
def test_an_example_runs(script, tmp_path):
    pytest.importorskip("keras")
    shown = run(script, tmp_path)
    for text in SHOWN[script]:
        assert text in shown
    if script == "resume_training":
        (expected, found) = re.findall(r"([\d.]+) without a break, ([\d.]+) after loading", shown)[0]
        assert expected == found


def test_every_example_is_run_and_listed():
    scripts = {path.stem for path in FOLDER.glob("*.py")}
    listed = set(re.findall(r"\[(\w+)\.py\]\(\1\.py\)", (FOLDER / "README.md").read_text("utf-8")))
    assert scripts == SHOWN.keys() == listed
