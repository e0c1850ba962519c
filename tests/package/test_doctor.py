"""What ``fastassign doctor`` says of the way to a GPU."""

import importlib.metadata
from types import SimpleNamespace

import pytest
import tensorflow as tf

from fastassign import doctor
from fastassign.benchmarks.device import card as cards
from fastassign.devices.driver import Missing
from support.running import set_runtime
from support.simulated import DEVICES
from support.simulated_card import simulated_card


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(doctor, "_PROBE_BYTES", 1 << 20)


def lines_of():
    return list(doctor._gpu())


def texts_of():
    return dict(lines_of())


def show(monkeypatch, *names):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [SimpleNamespace(name=n) for n in names])


def test_without_a_driver_it_is_one_line(monkeypatch):
    set_runtime(monkeypatch, find_driver=lambda: Missing("there is none", "get one"))
    monkeypatch.setattr(cards, "unopened", lambda library: f"{library}: no such file")
    assert lines_of() == [("gpu", "no NVIDIA driver is installed (libcuda.so.1: no such file)")]


def test_bindings_that_are_missing_are_named(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    set_runtime(monkeypatch, find_driver=lambda: Missing("the package cuda-bindings is not here", "get it"))
    monkeypatch.setattr(cards, "unopened", lambda library: "")
    monkeypatch.setattr(importlib.metadata, "version", version)
    show(monkeypatch)
    lines = lines_of()
    assert lines[0][0] == "gpu"
    assert lines[0][1].startswith("can't be reached: the package cuda-bindings is not here. Therefore values go")
    assert lines[0][1].endswith("To change that: get it")
    assert "cuda-bindings is missing" in dict(lines)["gpu packages"]
    assert "numba-cuda is missing" in dict(lines)["gpu packages"]
    assert "ulimit -l" in dict(lines)["locked memory"]
    assert lines[-1][1].startswith("TensorFlow sees none: ")


def test_a_card_that_only_tensorflow_reaches_is_told_once(monkeypatch):
    set_runtime(monkeypatch, find_driver=lambda: Missing("the driver is too old", "get another"))
    monkeypatch.setattr(cards, "unopened", lambda library: "")
    show(monkeypatch, "/device:GPU:0")
    assert [name for name, _ in lines_of()] == ["gpu", "gpu packages", "locked memory"]


def test_a_card_is_described_and_measured(monkeypatch):
    show(monkeypatch, DEVICES[0])
    with simulated_card(monkeypatch):
        texts = texts_of()
    assert "name Simulated" in texts["gpu"]
    assert "CUDA 13.1" in texts["gpu driver"]
    assert texts["gpu kernels"] == "run (numba)"
    assert texts["host to device"].count("GB/s") == 2


def test_memory_that_can_not_be_locked_is_told(monkeypatch):
    show(monkeypatch, DEVICES[0])
    with simulated_card(monkeypatch, lockable_bytes=0, kernels=False):
        texts = texts_of()
    assert "page-locked: " in texts["host to device"]
    assert "GB/s pageable" in texts["host to device"]
    assert "numba can't use CUDA" in texts["gpu kernels"]
    assert "cast on the host" in texts["gpu kernels"]


def test_a_card_that_fails_is_told(monkeypatch):
    show(monkeypatch, DEVICES[0])
    with simulated_card(monkeypatch) as driver:
        driver.is_lost = True
        texts = texts_of()
        driver.is_lost = False
    assert texts["gpu"] == "DeviceFailed: the simulated device is lost"
