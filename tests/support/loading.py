"""Repeated loads: how they are compared with stock, held up half-way, and run beside others."""

import threading
import zipfile
from contextlib import contextmanager

import keras
import pytest
import tf_keras
from tensorflow.python.eager import context

import fastassign as fa
from support import differential as d
from support import models
from support.options import load_options

# No wait in here lasts, unless something is wrong.
LONG = 120
MADE, KEPT, AGAIN = "made", "kept", "made again: "
OTHER_STRUCTURE = AGAIN + "the structure of the file differs from that of the file before"


TOGETHER = fa.LoadOptions(swap="together")
BOTH = pytest.mark.parametrize("k", [keras, tf_keras], ids=["keras", "tf_keras"])


def values(model):
    return [row[3] for row in d.snapshot(model)]


def compare(loader, model, stock, path, *, load=None, **arguments):
    """Load a file by stock and by a loader; every variable is the same afterwards. Return the report."""
    with d.quiet():
        d.perturb(stock, 0.25)
        d.perturb(model, 0.25)
        stock.load_weights(str(path), **arguments)
        report = (load or loader.load)(path)
    assert_same(model, stock)
    return report


def assert_same(model, stock):
    """Assert that every variable is bit for bit the same, whatever it is called."""
    rows = zip(d.snapshot(model), d.snapshot(stock), strict=True)
    assert [row[0] for row, expected in rows if row[1:] != expected[1:]] == []


def in_background(loader):
    return lambda path: loader.load_async(path).result(LONG)


def dense(k=keras):
    return models.chain(k, 5, 5, 3, names=["a", "b", "c"])


class Brake:
    """Holds up the reads of tensors, from a certain read on, until it is let go."""

    def __init__(self):
        self.reached, self.may_go = threading.Event(), threading.Event()
        self.reads = self.first = 0

    def hold(self, number, offset, wanted):
        self.reads += 1
        if self.reads > self.first:
            self.reached.set()
            assert self.may_go.wait(LONG)


class Lock:
    """A lock that tells when it is asked for, and that may be held up while it is let go."""

    def __init__(self):
        self.inner, self.asked = threading.Lock(), threading.Event()
        self.leaving, self.may_leave = threading.Event(), threading.Event()
        self.may_leave.set()

    def __enter__(self):
        self.asked.set()
        assert self.inner.acquire(timeout=LONG)

    def __exit__(self, *_):
        self.leaving.set()
        assert self.may_leave.wait(LONG)
        self.inner.release()


def together(model, lock, **how):
    return fa.Loader(model, lock=lock, options=load_options(swap="together", **how))


@contextmanager
def running(work):
    """Run something in a thread that has ended afterwards; what it raised is raised here."""
    errors = []

    def call():
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - for the thread that asserts
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(LONG)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def compress(path):
    """Write an archive anew, with its members compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def trained(k):
    """A model with scalars, vectors and matrices, whose optimizer has variables too."""
    return models.compiled(k, models.functional(k))


def wide():
    """Six matrices, each more than a read."""
    return models.chain(keras, 40, 40, 40, 40, 40, 40, use_bias=False, size=40)


def functions():
    """Return the names of the functions that loaders made."""
    return [name for name in context.context().list_function_names() if name.startswith("__fastassign")]
