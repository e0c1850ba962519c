"""CUDA's driver: its use of the bindings' answers, and the real bindings on a stand-in for libcuda."""

import ast
import gc
import importlib.util
import inspect
import logging
import os
import shutil
import subprocess
import sys
import threading
import types
from enum import IntEnum
from pathlib import Path

import pytest

from fastassign.devices import cuda
from fastassign.devices.discover import find_driver
from fastassign.errors import DeviceFailed, NotPageLocked
from fastassign.kernels import scatter

HERE = Path(__file__).parent
SUPPORT = HERE.parent / "support"
GPU = "/job:localhost/replica:0/task:0/device:GPU:0"


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_DEINITIALIZED = 4
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_NEW = 999


class Bindings:
    """A stand-in for ``cuda.bindings.driver``: functions that return a status and, if they have one, a result.

    ``failing`` maps names of functions to a status that they return, or an error that they raise.
    """

    CU_MEMHOSTREGISTER_PORTABLE = 1
    CUstream_flags = IntEnum("CUstream_flags", {"CU_STREAM_NON_BLOCKING": 1})
    CUevent_flags = IntEnum("CUevent_flags", {"CU_EVENT_BLOCKING_SYNC": 1, "CU_EVENT_DISABLE_TIMING": 2})
    CUpointer_attribute = IntEnum("CUpointer_attribute", {"CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL": 9})

    def __init__(self, devices=1, **failing):
        self.devices, self.failing = devices, failing
        self.calls, self.contexts, self.events = [], [], set()

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: self._call(name, *arguments)

    def names(self):
        return [name for name, *_ in self.calls]

    def _call(self, name, *arguments):
        self.calls.append((name, *arguments))
        result = getattr(self, f"_{name}", lambda *_: ())
        failure = self.failing.get(name, Status.CUDA_SUCCESS)
        if not isinstance(failure, Status):
            raise failure
        if failure:
            return (failure, None) if hasattr(self, f"_{name}") else (failure,)
        return (failure, *result(*arguments))

    def _cuDeviceGetCount(self):
        return (self.devices,)

    def _cuDeviceGet(self, ordinal):
        return (f"device {ordinal}",)

    def _cuDevicePrimaryCtxRetain(self, device):
        return (f"context of {device}",)

    def _cuCtxPushCurrent(self, context):
        self.contexts.append(context)
        return ()

    def _cuCtxPopCurrent(self):
        return (self.contexts.pop(),)

    def _cuStreamCreate(self, flags):
        return ("stream",)

    def _cuEventCreate(self, flags):
        event = object()
        self.events.add(event)
        return (event,)

    def _cuEventDestroy(self, event):
        assert self.contexts
        self.events.remove(event)
        return ()

    def _cuEventElapsedTime(self, start, end):
        return (1500.0,)

    def _cuPointerGetAttribute(self, attribute, address):
        return (address // 1000,)

    def _cuGetErrorString(self, status):
        return (None if status == Status.CUDA_ERROR_NEW else b"the text",)


def seam(devices=1, **failing):
    """Return a driver that was made without an error, and its bindings, of which some functions fail from now on."""
    bindings = Bindings(devices)
    driver = cuda.CudaDriver(bindings)
    bindings.failing = failing
    return driver, bindings


# Errors.


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (Status.CUDA_ERROR_ILLEGAL_ADDRESS, "cuInit: CUDA_ERROR_ILLEGAL_ADDRESS (the text)"),
        (Status.CUDA_ERROR_NEW, "cuInit: CUDA_ERROR_NEW"),
        # The errors of bindings of CUDA 12 and 13.0, and of newer ones, for a status that they don't know.
        (KeyError(4242), "cuInit: a status that the bindings don't know (4242)"),
        (ValueError("4242 is not a valid CUresult"), "cuInit: a status that the bindings don't know (4242 is not"),
        (RuntimeError('Function "cuInit" not found'), 'cuInit: Function "cuInit" not found'),
    ],
)
def test_errors_name_the_function_and_the_reason(failure, text):
    driver, _ = seam(cuInit=failure)
    with pytest.raises(DeviceFailed) as caught:
        driver.call("cuInit", 0)
    assert str(caught.value).startswith(text)
    assert caught.value.hint


def test_calls_return_the_drivers_result():
    driver, _ = seam(devices=3)
    assert driver.count == 3
    assert driver.call("cuInit", 0) is None
    assert driver.call("cuEventElapsedTime", 1, 2) == 1500.0


# Contexts.


def use(driver):
    driver.lock(0, 4096, 8192)
    stream = driver.stream(0)
    with stream:
        stream.copy(1, 2, 3)
        start, end = stream.record(timed=True), stream.record(timed=True)
    end.wait()
    assert end.seconds_since(start) == 1.5
    stream.close()
    driver.unlock(0, 4096)


def test_every_context_is_left_and_every_event_destroyed():
    driver, bindings = seam()
    use(driver)
    assert not bindings.contexts and not bindings.events
    names = bindings.names()
    assert names.count("cuCtxPushCurrent") == names.count("cuCtxPopCurrent")
    assert names.count("cuDevicePrimaryCtxRetain") == 1 and "cuDevicePrimaryCtxRelease" not in names
    assert ("cuMemHostRegister", 4096, 8192, 1) in bindings.calls
    assert ("cuMemcpyHtoDAsync", 1, 2, 3, "stream") in bindings.calls


@pytest.mark.parametrize(
    "function",
    [
        "cuMemHostRegister",
        "cuStreamCreate",
        "cuMemcpyHtoDAsync",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuEventElapsedTime",
        "cuStreamDestroy",
        "cuMemHostUnregister",
    ],
)
def test_contexts_are_left_whatever_fails(function):
    driver, bindings = seam(**{function: Status.CUDA_ERROR_ILLEGAL_ADDRESS})
    with pytest.raises((DeviceFailed, NotPageLocked), match=f"{function}: CUDA_ERROR_ILLEGAL_ADDRESS"):
        use(driver)
    gc.collect()
    assert not bindings.contexts and not bindings.events


def test_a_context_that_was_not_entered_is_not_left():
    driver, bindings = seam(cuCtxPushCurrent=Status.CUDA_ERROR_ILLEGAL_ADDRESS)
    with pytest.raises(DeviceFailed, match="cuCtxPushCurrent"):
        driver.stream(0)
    assert "cuCtxPopCurrent" not in bindings.names()


def test_leaving_does_not_hide_an_earlier_error():
    failing = {"cuCtxPopCurrent": Status.CUDA_ERROR_ILLEGAL_ADDRESS}
    driver, bindings = seam(**failing)
    with pytest.raises(DeviceFailed, match="cuCtxPopCurrent"):
        driver.unlock(0, 4096)
    bindings.failing["cuMemHostRegister"] = Status.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(NotPageLocked, match="CUDA_ERROR_OUT_OF_MEMORY") as caught:
        driver.lock(0, 4096, 4096)
    assert "and then cuCtxPopCurrent: CUDA_ERROR_ILLEGAL_ADDRESS (the text)" in caught.value.__notes__


def test_threads_that_meet_share_a_context():
    driver, bindings = seam(devices=2)
    threads = [threading.Thread(target=driver.context, args=(ordinal,)) for ordinal in (0, 1) * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert driver.context(0) == "context of device 0" and driver.context(1) == "context of device 1"
    assert bindings.names().count("cuDevicePrimaryCtxRetain") == 2


# Devices, locks, marks, kernels.


def test_the_only_device_is_the_first():
    driver, bindings = seam()
    assert driver.ordinal_of(GPU, 1234) == 0
    assert "cuPointerGetAttribute" not in bindings.names()


def test_the_address_tells_one_of_several_devices():
    driver, bindings = seam(devices=2)
    assert [driver.ordinal_of(GPU, address) for address in (0, 1234)] == [0, 1]
    bindings.failing["cuPointerGetAttribute"] = Status.CUDA_ERROR_INVALID_CONTEXT
    with pytest.raises(DeviceFailed, match="cuPointerGetAttribute: CUDA_ERROR_INVALID_CONTEXT"):
        driver.ordinal_of(GPU, 1234)


@pytest.mark.parametrize("failure", [Status.CUDA_ERROR_OUT_OF_MEMORY, KeyError(4242)])
def test_memory_that_is_not_locked(failure):
    driver, _ = seam(cuMemHostRegister=failure)
    with pytest.raises(NotPageLocked, match="8192 bytes of host memory could not be page-locked: cuMem") as caught:
        driver.lock(0, 4096, 8192)
    assert "DeviceOptions(page_lock=False)" in caught.value.hint
    assert isinstance(caught.value.__cause__, DeviceFailed)


@pytest.mark.parametrize("failure", [Status.CUDA_ERROR_OUT_OF_MEMORY, KeyboardInterrupt])
@pytest.mark.parametrize("function", ["cuEventCreate", "cuEventRecord"])
def test_copies_that_get_no_mark_are_waited_for(function, failure):
    driver, bindings = seam(**{function: failure})
    with driver.stream(0) as stream:
        stream.copy(1, 2, 3)
        with pytest.raises((DeviceFailed, KeyboardInterrupt)):
            stream.record()
        assert ("cuStreamSynchronize", "stream") in bindings.calls
    gc.collect()
    assert not bindings.events


def test_marks_of_a_lost_device_go_quietly(caplog):
    driver, bindings = seam(cuEventDestroy=Status.CUDA_ERROR_ILLEGAL_ADDRESS)
    with driver.stream(0) as stream, caplog.at_level(logging.INFO, "fastassign"):
        stream.record()
        gc.collect()
    assert "cuEventDestroy" in bindings.names()
    assert not caplog.records and not bindings.contexts


LEFT_OVER = """
import test_cuda_seam
driver, bindings = test_cuda_seam.seam()
with driver.stream(0) as stream:
    kept = stream.record()
    circle = [stream.record()]
    circle.append(circle)
bindings.failing["cuCtxPushCurrent"] = test_cuda_seam.Status.CUDA_ERROR_DEINITIALIZED
"""


def test_marks_may_outlive_the_interpreter():
    command = [sys.executable, "-c", LEFT_OVER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=HERE)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_kernel_that_can_not_be_launched(monkeypatch):
    launched = []
    monkeypatch.setattr(scatter, "launch", lambda work, **where: launched.append((work, where)))
    driver, bindings = seam(devices=2)
    bindings._cuStreamCreate = lambda flags: (77,)
    stream = driver.stream(1)
    work = scatter.Scatter(8, 16, 24, 32, 40, rows=1, longest=2, kind="copy")
    stream.scatter(work)
    assert launched == [(work, {"stream": 77, "ordinal": 1})]

    def fail(work, **where):
        raise ArithmeticError("from numba")

    monkeypatch.setattr(scatter, "launch", fail)
    with pytest.raises(DeviceFailed, match="could not be launched: ArithmeticError: from numba") as caught:
        stream.scatter(work)
    assert "NUMBA_DISABLE_CUDA=1" in caught.value.hint


# No driver.


def found(monkeypatch, bindings):
    """Return the result of find_driver with these bindings; ``None`` stands for a missing package."""
    package = types.ModuleType("cuda.bindings")
    package.driver = bindings
    monkeypatch.setitem(sys.modules, "cuda", None if bindings is None else types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None if bindings is None else package)
    return find_driver.__wrapped__()


def test_a_driver_is_found(monkeypatch):
    assert isinstance(found(monkeypatch, Bindings()), cuda.CudaDriver)


def test_without_the_package(monkeypatch):
    missing = found(monkeypatch, None)
    assert missing.reason.startswith("the package cuda-bindings is not installed (")
    assert missing.hint == "pip install fastassign[cuda]"


@pytest.mark.parametrize(
    ("bindings", "reason"),
    [
        (Bindings(cuInit=RuntimeError("Failed to dlopen libcuda.so.1")), "cuInit: Failed to dlopen libcuda.so.1"),
        (Bindings(cuInit=Status.CUDA_ERROR_NO_DEVICE), "cuInit: CUDA_ERROR_NO_DEVICE (the text)"),
        (Bindings(cuInit=KeyError(4242)), "cuInit: a status that the bindings don't know (4242)"),
        (Bindings(devices=0), "the driver sees no device"),
    ],
)
def test_without_a_driver_or_a_device(monkeypatch, bindings, reason):
    missing = found(monkeypatch, bindings)
    assert missing.reason == f"CUDA's driver can't be used: {reason}"
    assert "CUDA_VISIBLE_DEVICES" in missing.hint


# The real bindings.

needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None,
    reason="needs the package cuda-bindings",
)


@needs_bindings
def test_the_bindings_have_every_name():
    from cuda.bindings import driver

    tree = ast.parse(inspect.getsource(cuda))
    functions = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "call"
    }
    attributes = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith(("cu", "CU"))
    }
    enumerations = {name for name in attributes if isinstance(getattr(driver, name, None), type)}
    members = {member for name in enumerations for member in getattr(driver, name).__members__}
    assert "cuMemcpyHtoDAsync" in functions and "CU_EVENT_BLOCKING_SYNC" in attributes and enumerations
    assert not [name for name in functions if not callable(getattr(driver, name, None))]
    assert not [name for name in attributes - members if not hasattr(driver, name)]


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory):
    """Return the folder of a stand-in for libcuda."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("libcuda")
    flags = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *flags, "-o", folder / "libcuda.so.1", SUPPORT / "libcuda.c"], check=True)
    return folder


def run(libcuda, *program):
    paths = [str(libcuda), os.environ.get("LD_LIBRARY_PATH")]
    # numba would call functions that the stand-in lacks.
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
        "NUMBA_DISABLE_CUDA": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, SUPPORT / "on_libcuda.py", *map(str, program)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@needs_bindings
@pytest.mark.parametrize(
    "program",
    [
        "copies",
        "times",
        "refusals",
        "several_devices",
        "lost",
        "threads",
        "others_run_meanwhile",
        "unseen_devices",
        "older_driver",
        "ends_with_fences",
    ],
)
def test_with_the_real_bindings(libcuda, program):
    assert run(libcuda, program) == ""


@pytest.mark.slow
@needs_bindings
@pytest.mark.parametrize(("library", "name"), [("keras", "model.weights.h5"), ("tf_keras", "model.h5")])
def test_loads_with_the_real_bindings(libcuda, tmp_path, library, name):
    run(libcuda, "loads", library, tmp_path / name)
