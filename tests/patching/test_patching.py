"""accelerate, install and uninstall: the libraries' own calls go through fastassign, and are put back."""

import importlib
import inspect
import json
import subprocess
import sys
import threading
import types
from contextlib import ExitStack
from pathlib import Path

import keras
import numpy as np
import pytest
import tf_keras

import fastassign as fa
from fastassign.patching import redirect, seams, switch
from fastassign.patching.imports import PostImport
from support.differential import LIBRARIES, calls_logged, fill, perturb, save, value_of
from support.models import chain
from support.patched import ORIGINALS, PLACES, accelerated, look_up, replaced, saved

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_left():
    """Find the libraries as they were, before and after each test."""
    before = list(sys.meta_path)
    assert replaced() == []
    yield
    fa.uninstall()
    assert replaced() == []
    assert sys.meta_path == before
    assert not redirect.holders and not switch._patches


# Reversible


def test_every_place_is_replaced_and_put_back():
    with fa.accelerate():
        assert len(replaced()) == len(PLACES)
    assert replaced() == []


def test_leaving_by_an_error_puts_back():
    with pytest.raises(RuntimeError, match="mine"), fa.accelerate():
        raise RuntimeError("mine")
    assert replaced() == []


def test_install_is_done_once_and_undone_once():
    fa.install()
    fa.install()
    assert len(replaced()) == len(PLACES)
    fa.uninstall()
    assert replaced() == []
    fa.uninstall()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_the_last_who_leaves_puts_back(order):
    def install():
        fa.install()
        stack = ExitStack()
        stack.callback(fa.uninstall)
        return stack

    held = [install(), ExitStack(), ExitStack()]
    for stack in held[1:]:
        stack.enter_context(fa.accelerate())
    for number in order:
        assert len(replaced()) == len(PLACES)
        held[number].close()
    assert replaced() == []


def test_blocks_nest():
    with fa.accelerate(), fa.accelerate(), fa.accelerate():
        fa.install()
        fa.uninstall()
        assert len(replaced()) == len(PLACES)


def test_it_decorates_functions():
    @fa.accelerate()
    def call():
        return len(replaced())

    assert call() == call() == len(PLACES)
    assert replaced() == []


def test_a_name_bound_meanwhile_is_put_back(monkeypatch):
    late = types.ModuleType("tf_keras.late")
    monkeypatch.setitem(sys.modules, late.__name__, late)
    with fa.accelerate():
        late.batch_set_value = tf_keras.backend.batch_set_value
    assert late.batch_set_value is tf_keras.backend.batch_set_value


def test_a_reference_taken_meanwhile_is_stock_afterwards(tmp_path):
    path = save(chain(keras, 2), tmp_path / "x.weights.h5")
    with fa.accelerate():
        load = chain(keras, 2).load_weights
    with calls_logged() as calls:
        load(path)
    assert calls == []


def test_what_someone_else_put_in_stays(caplog):
    def theirs(*args, **kwargs):
        return None

    with fa.accelerate():
        own = tf_keras.src.backend.batch_set_value
        tf_keras.src.backend.batch_set_value = theirs
    try:
        assert tf_keras.src.backend.batch_set_value is theirs
        assert "batch_set_value was replaced by other code" in caplog.text
    finally:
        tf_keras.src.backend.batch_set_value = own.__wrapped__


class Boom(RuntimeError):
    pass


@pytest.mark.parametrize("position", [0, 3, 6])
@pytest.mark.parametrize("enter", [fa.install, lambda: fa.accelerate().__enter__()], ids=["install", "accelerate"])
def test_all_or_nothing(enter, position, monkeypatch):
    def fail(stock):
        raise Boom

    bad = seams.Seam("keras.src.models.model", "Model.save_weights", fail)
    table = list(seams.SEAMS["keras"])
    table.insert(position, bad)
    monkeypatch.setitem(seams.SEAMS, "keras", tuple(table))
    with pytest.raises(Boom):
        enter()
    assert replaced() == []


def test_what_a_version_lacks_is_left_out(monkeypatch, caplog):
    def other(group, model):
        """Do it in another way."""

    missing = seams.Seam("keras.src.no_such_module", "load", lambda stock: stock)
    gone = seams.Seam("keras.src.models.model", "Model.no_such_method", lambda stock: stock)
    monkeypatch.setitem(seams.SEAMS, "keras", (missing, gone, *seams.SEAMS["keras"]))
    legacy = sys.modules["keras.src.legacy.saving.legacy_h5_format"]
    with monkeypatch.context() as patched:
        patched.setattr(legacy, "load_model_from_hdf5", other)
        with fa.accelerate():
            assert legacy.load_model_from_hdf5 is other
            assert "Model.load_weights" in replaced()
    for text in ("no_such_module", "no_such_method", "does not call load_weights_from_hdf5_group"):
        assert text in caplog.text


def test_keras_2_is_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(keras, "__version__", "2.15.0")
    with fa.accelerate():
        assert "Model.load_weights" in replaced()  # tf_keras'
        assert keras.Model.__dict__["load_weights"] is look_up(sys.modules["keras.src.models.model"], PLACES[0][1])
    assert "Keras 2.15.0 is not patched" in caplog.text


def test_signatures_stay():
    wanted = [(inspect.signature(function), function.__name__, function.__doc__) for function in ORIGINALS]
    with fa.accelerate():
        found = [look_up(*place) for place in PLACES]
        assert [(inspect.signature(function), function.__name__, function.__doc__) for function in found] == wanted


# Threads


def test_threads_enter_and_leave_in_any_order(tmp_path):
    path = save(fill(chain(keras, 5, 3)), tmp_path / "x.weights.h5")
    wanted = values(keras, path)
    rng = np.random.default_rng(0)
    pauses = rng.uniform(0, 0.003, size=(4, 20))
    together = threading.Barrier(4)

    def work(number):
        model = chain(keras, 5, 3)
        together.wait(120)
        for pause in pauses[number]:
            with fa.accelerate():
                threading.Event().wait(pause)
                assert len(replaced()) == len(PLACES)
                perturb(model, 0.5)
                model.load_weights(path)
                assert [value_of(v).tobytes() for v in model.weights] == wanted

    threads = [Worker(target=work, args=(number,)) for number in range(4)]
    with calls_logged() as calls:
        run(threads)
    assert [call.levelname for call in calls] == ["DEBUG"] * 80


class Worker(threading.Thread):
    """A thread that keeps what it raised."""

    error = None

    def run(self):
        try:
            super().run()
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            self.error = error


def run(threads):
    """Run them, and raise what one of them raised."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    for thread in threads:
        if thread.error is not None:
            raise thread.error


def test_threads_install_and_uninstall_as_they_like():
    def work():
        for number in range(30):
            (fa.install, fa.uninstall)[number % 2]()
            with fa.accelerate():
                assert len(replaced()) == len(PLACES)

    run([Worker(target=work) for _ in range(4)])
    fa.uninstall()
    assert replaced() == []


def test_other_threads_are_accelerated_too(tmp_path):
    path = save(chain(keras, 2), tmp_path / "x.weights.h5")
    model = chain(keras, 2)
    with accelerated(ours=1, stock=0):
        thread = threading.Thread(target=model.load_weights, args=(path,))
        thread.start()
        thread.join(120)


def values(k, path):
    model = chain(k, 5, 3)
    model.load_weights(str(path))
    return [value_of(v).tobytes() for v in model.weights]


# Options


def test_the_newest_options_count(tmp_path):
    path = saved(chain(keras, 5, 3), tmp_path / "x.weights.h5")
    model = chain(keras, 5, 3)
    little = fa.LoadOptions(max_staging_bytes=1)
    fa.install(options=little)
    with pytest.raises(fa.Budget):
        model.load_weights(path)
    with fa.accelerate():
        model.load_weights(path)
        with fa.accelerate(options=little), pytest.raises(fa.Budget):
            model.load_weights(path)
        model.load_weights(path)
    with pytest.raises(fa.Budget):
        model.load_weights(path)
    fa.install()
    model.load_weights(path)


# Libraries that are imported later


def child(code, *arguments, **environment):
    """Run code in a process of its own; it prints JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=TESTS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LATE = """
import json, logging, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import fastassign as fa
fa.install()
heavy = [name for name in ("tensorflow", "keras", "tf_keras", "h5py._hl.files") if name in sys.modules]
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.levelname)
logging.getLogger("fastassign").addHandler(handler)
logging.getLogger("fastassign").setLevel(logging.DEBUG)
import LIBRARY as k
spec = type(k.__spec__.loader).__name__, type(k.__loader__).__name__
other = "tf_keras" if k.__name__ == "keras" else "keras"
model = k.Sequential([k.Input((4,)), k.layers.Dense(3)])
model.save_weights(sys.argv[1])
model.load_weights(sys.argv[1])
patched = "redirect" in k.Model.load_weights.__code__.co_filename
fa.uninstall()
left = "redirect" in k.Model.load_weights.__code__.co_filename
hooked = any(type(finder).__name__ == "PostImport" for finder in sys.meta_path)
print(json.dumps([heavy, list(spec), other in sys.modules, lines, patched, left, hooked]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_installed_before_the_library_is_imported(library, tmp_path):
    heavy, loaders, other, lines, patched, left, hooked = child(
        LATE.replace("LIBRARY", library), tmp_path / "x.weights.h5"
    )
    assert heavy == []
    assert loaders == ["SourceFileLoader"] * 2
    assert not other or library == "tf_keras"  # TensorFlow itself imports Keras 3
    assert lines == ["DEBUG"]
    assert patched and not left and not hooked


@pytest.mark.slow
def test_uninstalled_before_the_library_is_imported():
    code = (
        "import json, sys, fastassign as fa\n"
        "before = list(sys.meta_path)\n"
        "fa.install(); fa.uninstall()\n"
        "restored = sys.meta_path == before\n"
        "import keras\n"
        "print(json.dumps([restored, 'redirect' in keras.Model.load_weights.__code__.co_filename]))"
    )
    assert child(code) == [True, False]


@pytest.mark.slow
def test_imported_by_one_thread_while_another_installs():
    code = (
        "import json, sys, threading, time, fastassign as fa\n"
        "thread = threading.Thread(target=lambda: __import__('keras'))\n"
        "thread.start()\n"
        "while 'keras' not in sys.modules: time.sleep(0.001)\n"
        "fa.install()\n"
        "thread.join(120)\n"
        "import keras\n"
        "print(json.dumps(['redirect' in keras.Model.load_weights.__code__.co_filename, thread.is_alive()]))"
    )
    assert child(code) == [True, False]


def test_the_import_hook_leaves_other_finders_their_say(monkeypatch, tmp_path):
    """Two finders that ask each other, as tools for tracing have them, do not go round in circles."""
    (tmp_path / "some_library.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    told, asked = [], []

    class Other:
        def find_spec(self, name, path=None, target=None):
            if name == "some_library" and not asked:
                asked.append(name)
                return next(filter(None, (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)))
            return None

    hook = PostImport(("some_library",), told.append)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "meta_path", [hook, Other(), *sys.meta_path])
        module = importlib.import_module("some_library")
        patched.delitem(sys.modules, "some_library")
    assert module.value == 1 and told == ["some_library"] == asked
    assert module.__spec__.loader is module.__loader__ and type(module.__loader__).__module__ != hook.__module__
