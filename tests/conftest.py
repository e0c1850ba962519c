"""What every test needs: a quiet TensorFlow and an index cache of its own."""

import os
import signal

# A job that a shell runs in the background ignores Ctrl-C, and so would the programs that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# A card has to serve the programs that the tests start, too.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import pytest
import tensorflow as tf

pytest.register_assert_rewrite("cards", "differential", "patched", "simulated")

# Three devices, for the tests of distribution strategies, and to stand for cards: it has to be said before TensorFlow
# makes its first tensor.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
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
        import differential

        differential.ACCELERATED = config.getoption("accelerated")
        differential.ON_DEVICE = config.getoption("on_device")


def pytest_terminal_summary(terminalreporter, config):
    """Say that loads did go to a device."""
    if config.getoption("on_device"):
        import differential

        terminalreporter.write_line(f"{sum(differential.COPIES)} copies to a simulated device")


@pytest.fixture(autouse=True)
def own_index_cache(tmp_path_factory, monkeypatch):
    """Keep the user's cache out of the tests, and the tests out of the user's cache."""
    monkeypatch.setenv("FASTASSIGN_CACHE", str(tmp_path_factory.getbasetemp() / "index-cache"))


@pytest.fixture
def driver(monkeypatch):
    """Put a simulated device in place of CUDA's, and check afterwards that nothing was done wrong."""
    from simulated import simulated

    with simulated(monkeypatch) as driver:
        yield driver
