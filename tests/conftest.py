"""What every test needs: a quiet TensorFlow and an index cache of its own."""

import pytest

pytest.register_assert_rewrite("support")

from support import environment  # noqa: E402, F401 - before anything else imports TensorFlow


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


def pytest_terminal_summary(terminalreporter, config):
    """Say that loads did go to a device."""
    if config.getoption("on_device"):
        from support import differential

        terminalreporter.write_line(f"{sum(differential.COPIES)} copies to a simulated device")


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
