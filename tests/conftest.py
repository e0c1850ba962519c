"""What every test needs: a quiet TensorFlow, an index cache of its own, and its place among the workers.

``make test`` runs the tests in three processes (pytest-xdist), a file's tests in one of them and in their order: a
model or a file that a module's fixture makes is made once. The files that measure memory, or whose threads need the
processor, are one group: two of them never run side by side. The longest come first, so that none is left for the end.

``slow`` marks the tests that take seconds of processor time, alone or as a table of many cases, and ``make test-fast``
leaves them out. The summary names those that should have the mark: by processor time, which does not depend on how busy
the machine is.
"""

import gc
import os
import time

import pytest

pytest.register_assert_rewrite("support")

from support import environment, profiles  # noqa: E402, F401 - before anything else imports TensorFlow

# Processor seconds, the test's children included, from which a test should be marked slow.
SLOW_SECONDS = 3.0

# Files of which no two run side by side.
ALONE = (
    "assigning/test_memory.py",
    "assigning/test_threads.py",
    "assigning/graph/test_graph_threads.py",
    "loader/test_loader_memory.py",
    "loader/test_loader_threads.py",
)
# Files that take longest begin first, in this order; all others follow in theirs.
FIRST = (
    *ALONE,
    "architecture/test_load_model.py",
    "assigning/graph/test_modes.py",
    "matching/test_keras3_hooks.py",
    "matching/test_keras3_walk.py",
    "devices/test_cuda_seam.py",
    "benchmarks/test_benchmarks.py",
    "targets/test_deferred.py",
)


def pytest_addoption(parser):
    """Let the differential tests load through the libraries' own calls, or to a simulated device."""
    parser.addoption(
        "--accelerated", action="store_true", help="differential tests: load by model.load_weights, through fastassign"
    )
    parser.addoption(
        "--on-device", action="store_true", help="differential tests: load into models on a simulated device"
    )


def pytest_configure(config):
    """Take the options up."""
    if config.getoption("accelerated") or config.getoption("on_device"):
        from support import differential

        differential.ACCELERATED = config.getoption("accelerated")
        differential.ON_DEVICE = config.getoption("on_device")


def pytest_report_header():
    """Say which random cases are tried."""
    return profiles.header()


def pytest_collection_modifyitems(items):
    """Put the longest files first; `sort` leaves the others in their order."""
    rank = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(_name_of(item.nodeid), len(rank)))


def pytest_collection_finish():
    """Let the garbage collector pass over what all tests share: TensorFlow alone is a million objects."""
    gc.collect()
    gc.freeze()


def _name_of(nodeid):
    """Return the name of a test's file, from the folder of the tests on."""
    return nodeid.partition("::")[0].removeprefix("tests/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand whole files to the workers, and those of `ALONE` to one of them."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            name = _name_of(nodeid)
            return "alone" if name in ALONE else name

    config.option.loadscopereorder = False  # the order of the tests, not of how many a file has
    return Files(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Measure the processor time of a test, with that of its children."""
    before = _processor_seconds()
    try:
        return (yield)
    finally:
        item.user_properties.append(("processor_seconds", round(_processor_seconds() - before, 2)))
        item.user_properties.append(("slow", item.get_closest_marker("slow") is not None))


def _processor_seconds():
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def pytest_terminal_summary(terminalreporter):
    """Name the tests that should be marked slow."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            properties = dict(report.user_properties)
            seconds = properties.get("processor_seconds", 0.0)
            if report.when == "call" and seconds > SLOW_SECONDS and not properties["slow"]:
                terminalreporter.write_line(f"{report.nodeid} took {seconds} processor seconds and is not marked slow")


@pytest.fixture(autouse=True)
def own_index_cache(tmp_path_factory, monkeypatch):
    """Keep the user's cache out of the tests, and the tests out of the user's cache."""
    monkeypatch.setenv("FASTASSIGN_CACHE", str(tmp_path_factory.getbasetemp() / "index-cache"))


@pytest.fixture
def driver(monkeypatch):
    """Put a simulated device in place of CUDA's, and check afterwards that nothing was done wrong."""
    from support.simulated import simulated

    with simulated(monkeypatch) as driver:
        yield driver


@pytest.fixture(params=["itself", "accelerated"])
def both_ways(request, monkeypatch):
    """Load by fastassign itself, and by the library's own call through it: for tests that do without `check`."""
    from support import differential

    monkeypatch.setattr(differential, "ACCELERATED", request.param == "accelerated")


@pytest.fixture(params=["host", "device"])
def copies(request, monkeypatch):
    """Compare loads to the host, and again to a simulated device: then how many copies each load made, else None."""
    from support import differential

    found = []
    monkeypatch.setattr(differential, "ON_DEVICE", request.param == "device")
    monkeypatch.setattr(differential, "COPIES", found)
    return found if request.param == "device" else None
