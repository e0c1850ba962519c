"""``fastassign run``: an unchanged program, as Python would run it, with its loads through fastassign."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FASTASSIGN = [sys.executable, "-m", "fastassign"]

LOADING = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
model.save_weights("x.weights.h5")
model.load_weights("x.weights.h5")
model.save("x.keras")
keras.models.load_model("x.keras")
try:
    model.load_weights("missing.weights.json")
except FileNotFoundError:
    print("missing")
"""

# What a program can see of how it is run.
LOOKING = """
import json, os, sys, types
import helper
me = sys.modules["__main__"]
print(json.dumps({
    "argv": sys.argv, "name": __name__, "file": __file__, "path": sys.path[0], "spec": str(__spec__),
    "package": str(__package__), "main": me.__dict__ is globals(), "helper": helper.__file__,
    "loader": type(__loader__).__name__, "cached": globals().get("__cached__"), "doc": __doc__,
    "future": "annotations" in globals(), "hook": sys.excepthook is sys.__excepthook__,
}))
"""


@pytest.fixture
def folder(tmp_path):
    """A program in a folder of its own, started from another one."""
    program = tmp_path / "program"
    program.mkdir()
    (program / "helper.py").write_text("")
    (program / "looking.py").write_text(LOOKING)
    (program / "loading.py").write_text(LOADING)
    return tmp_path


def execute(command, folder, **how):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONSAFE")}
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=folder,
        env=environment,
        **how,
    )


def by_both(folder, *arguments, options=()):
    """Run the same by Python and by fastassign."""
    return [
        execute([*command, *arguments], folder)
        for command in ([sys.executable, *options], [sys.executable, *options, "-m", "fastassign", "run"])
    ]


@pytest.mark.slow
def test_loads_go_through_fastassign(folder):
    done = execute([*FASTASSIGN, "run", "--verbose", "program/loading.py"], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "missing\n"
    lines = [line for line in done.stderr.splitlines() if line.startswith("fastassign: ")]
    assert [line.split("(")[0].removeprefix("fastassign: ") for line in lines] == [
        "keras.Model.load_weights",
        "keras.saving.load_model",
        "keras.Model.load_weights",
    ]
    assert ["by fastassign" in line for line in lines] == [True, True, False]
    assert "sharded weights are not supported yet" in lines[2]


@pytest.mark.slow
def test_without_verbose_nothing_is_said(folder):
    done = execute([*FASTASSIGN, "run", "program/loading.py"], folder)
    assert done.returncode == 0, done.stderr
    assert "fastassign" not in done.stderr


def test_nothing_is_imported_before_the_program(folder):
    (folder / "early.py").write_text(
        "import sys; print([name for name in ('tensorflow', 'keras', 'tf_keras', 'numba') if name in sys.modules])"
    )
    assert execute([*FASTASSIGN, "run", "early.py"], folder).stdout == "[]\n"


ARGUMENTS = ["-x", "--verbose", "--help", "run", "--", "-m", "a b"]


def test_a_script_sees_what_it_sees_under_python(folder):
    plain, ours = by_both(folder, "program/looking.py", *ARGUMENTS)
    assert ours.returncode == plain.returncode == 0, ours.stderr
    assert json.loads(ours.stdout) == json.loads(plain.stdout)
    assert json.loads(ours.stdout)["argv"] == ["program/looking.py", *ARGUMENTS]


def test_a_script_behind_a_link(folder):
    (folder / "link.py").symlink_to("program/looking.py")
    plain, ours = by_both(folder, "link.py")
    assert ours.returncode == plain.returncode == 0, ours.stderr
    assert json.loads(ours.stdout) == json.loads(plain.stdout)


def test_a_module_sees_what_it_sees_under_python(folder):
    plain, ours = by_both(folder / "program", "-m", "looking", *ARGUMENTS)
    assert ours.returncode == plain.returncode == 0, ours.stderr
    found, wanted = (re.sub(" at 0x[0-9a-f]+", "", done.stdout) for done in (ours, plain))
    assert json.loads(found) == json.loads(wanted)


def test_a_package_is_run_by_its_main(folder):
    (folder / "program" / "pack").mkdir()
    (folder / "program" / "pack" / "__init__.py").write_text("")
    (folder / "program" / "pack" / "__main__.py").write_text(
        "from . import __name__ as n\nimport sys\nprint(n, sys.argv[1:])"
    )
    plain, ours = by_both(folder / "program", "-m", "pack", "-v", "x")
    assert ours.stdout == plain.stdout == "pack ['-v', 'x']\n", ours.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P came with Python 3.11")
def test_a_safe_path_stays_safe(folder):
    plain, ours = by_both(folder, "program/looking.py", options=["-P"])
    assert plain.returncode == ours.returncode == 1
    assert "No module named 'helper'" in ours.stderr


ENDINGS = {
    "exit_0": "raise SystemExit",
    "exit_3": "import sys; sys.exit(3)",
    "exit_text": "import sys; sys.exit('no more')",
    "error": "def f():\n    raise ValueError('mine')\nf()",
    "chained": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('k') from error",
    "syntax": "x = = 1",
    "import": "import no_such_module_at_all",
    "recursion": "import json\njson.loads('{')",
    "group": "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
    "hook": "import sys\nsys.excepthook = lambda *e: print(e[:2], e[2].tb_frame.f_code.co_name)\n1 / 0",
    "own_error": "import fastassign as fa\nfa.inspect('missing.h5')",
    "base": "class Mine(BaseException): pass\nraise Mine('base')",
    "broken_pipe": "raise BrokenPipeError(32, 'Broken pipe')",
    "end_of_file": "raise EOFError('end')",
    "atexit": "import atexit, sys\natexit.register(lambda: print(sys.modules['__main__'].value))\nvalue = 5",
    "thread": "import threading, time, sys\nvalue = 5\n"
    "threading.Thread(target=lambda: (time.sleep(0.2), print(sys.modules['__main__'].value))).start()",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_it_ends_as_under_python(name, folder):
    (folder / "end.py").write_text(ENDINGS[name])
    plain, ours = by_both(folder, "end.py")
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_an_interrupt_ends_it_as_under_python(folder):
    """Which the program sends itself: so that it comes at the same line each time."""
    (folder / "wait.py").write_text(
        "import os, signal, time\nprint('ready', flush=True)\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    plain, ours = by_both(folder, "wait.py")
    assert ours.stdout == "ready\n"
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)
    assert "KeyboardInterrupt" in ours.stderr


def test_processes_that_a_program_starts_find_it(folder):
    (folder / "many.py").write_text(
        "import multiprocessing, sys\n"
        "def double(x):\n    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(double, [1, 2, 3]))\n"
    )
    done = execute([*FASTASSIGN, "run", "many.py"], folder)
    assert done.stdout == "[2, 4, 6]\n", done.stderr


def test_coding_and_future_of_the_script_are_its_own(folder):
    (folder / "latin.py").write_bytes(
        "# -*- coding: latin-1 -*-\ndef f(x: undefined_name): return 'é'\n".encode("latin-1")
    )
    plain, ours = by_both(folder, "latin.py")
    assert "undefined_name" in ours.stderr
    assert ours.stderr == plain.stderr


@pytest.mark.parametrize("arguments", [[], ["missing.py"], ["."], ["--nonsense", "x.py"]])
def test_what_can_not_be_run_is_a_usage_error(arguments, folder):
    done = execute([*FASTASSIGN, "run", *arguments], folder)
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_that_is_missing(folder):
    done = execute([*FASTASSIGN, "run", "-m", "no_such_module_at_all"], folder)
    assert done.returncode == 1
    assert "No module named no_such_module_at_all" in done.stderr


def test_the_console_script_does_the_same(folder):
    script = Path(sys.executable).with_name("fastassign")
    if not script.exists():
        pytest.skip("fastassign is not installed here")
    plain = execute([sys.executable, "program/looking.py", *ARGUMENTS], folder)
    ours = execute([script, "run", "program/looking.py", *ARGUMENTS], folder)
    assert json.loads(ours.stdout) == json.loads(plain.stdout), ours.stderr


def test_help():
    done = subprocess.run([*FASTASSIGN, "run", "--help"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0
    assert "--verbose" in done.stdout
