"""What holds in every mode of TensorFlow 1: three are for a whole process, and run in a child each."""

import json
import os
import subprocess
import sys

import pytest

from support import graph_modes


@pytest.fixture(scope="module")
def outcomes(files):
    """Run the checks of each mode of a whole process in a process of its own, all at once; return what came of them."""
    environment = {
        **os.environ,
        "FASTASSIGN_CACHE": str(files / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    program = [sys.executable, graph_modes.__file__]
    logs = {mode: (files / f"{mode}.log").open("w+") for mode in graph_modes.MODES[1:]}
    started = {}
    for mode, log in logs.items():
        folder = files / mode
        folder.mkdir()
        for file in files.iterdir():
            if file.suffix in {".h5", ".npz"}:
                os.link(file, folder / file.name)
        started[mode] = subprocess.Popen([*program, mode, folder], env=environment, stdout=log, stderr=log)
    ended = {}

    def outcome(mode):
        if mode not in ended:
            code = started[mode].wait(900)
            logs[mode].seek(0)
            assert code == 0, logs[mode].read()
            ended[mode] = json.loads((files / mode / f"{mode}.json").read_text(encoding="utf-8"))
        return ended[mode]

    yield outcome
    for mode, process in started.items():
        process.kill()
        process.wait()
        logs[mode].close()


@pytest.mark.parametrize(
    ("mode", "check"),
    [
        pytest.param(mode, check, marks=[] if mode == "graph" else pytest.mark.slow)
        for mode in graph_modes.MODES
        for check in graph_modes.checks_of(mode)
    ],
)
def test_in_every_mode(mode, check, outcomes, files):
    if mode == "graph":
        graph_modes.run(check, mode, files)
    else:
        failure = outcomes(mode)[check]
        assert failure is None, f"in a process of its own:\n{failure}"
