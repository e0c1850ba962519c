"""Programs for ``libcuda.c`` and NVIDIA's own bindings: ``python on_libcuda.py NAME``, as test_cuda_seam.py does."""

import contextlib
import ctypes
import gc
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastassign.devices.cuda import CudaDriver
from fastassign.devices.discover import find_driver
from fastassign.devices.driver import Missing
from fastassign.errors import DeviceFailed, NotPageLocked

library = ctypes.CDLL("libcuda.so.1")

# Memory that copies may still be queued for.
kept = []


class Stub:
    """The stub's variables."""

    def __getattr__(self, name):
        return ctypes.c_int.in_dll(library, f"stub_{name}").value

    def __setattr__(self, name, value):
        ctypes.c_int.in_dll(library, f"stub_{name}").value = value


stub = Stub()


def own(array, ordinal):
    library.stub_own(ctypes.c_size_t(array.ctypes.data), ctypes.c_size_t(array.nbytes), ordinal)


def driver():
    stub.devices = stub.devices or 1
    found = find_driver()
    assert isinstance(found, CudaDriver), found
    return found


def memory(nbytes=4096, seed=0):
    kept.append((np.random.default_rng(seed).integers(1, 256, nbytes, np.uint8), np.zeros(nbytes, np.uint8)))
    return kept[-1]


def copy(stream, source, destination, **how):
    with stream:
        stream.copy(destination.ctypes.data, source.ctypes.data, source.nbytes)
        return stream.record(**how)


@contextlib.contextmanager
def raises(kind, *texts):
    try:
        yield
    except kind as error:
        assert all(text in str(error) for text in texts), error  # noqa: PT017 - there is no pytest here
    else:
        raise AssertionError(f"no {kind.__name__}")


def copies():
    one, other = driver().stream(0), driver().stream(0)
    (source, first), (_, second), (_, third) = memory(), memory(), memory()
    fences = [copy(one, source, first), copy(one, source, second), copy(other, source, third)]
    assert stub.copies == 3 and not stub.landed
    fences[0].wait()
    assert (first == source).all() and not second.any() and not third.any()
    fences[0].wait()
    fences[1].wait()
    fences[2].wait()
    assert (second == source).all() and (third == source).all()
    assert stub.events == 3
    fences.clear()
    assert stub.events == 0
    one.close()
    other.close()
    assert stub.streams == 0 and stub.retained == 1 and library.stub_depth() == 0 and not stub.violations
    # That the stand-in would notice:
    careless = driver().stream(0)
    copy(careless, source, first)
    careless.close()
    assert stub.violations == 1


def times():
    stream = driver().stream(0)
    start, end = (copy(stream, *memory(1 << 20), timed=True) for _ in range(2))
    with raises(DeviceFailed, "cuEventElapsedTime: CUDA_ERROR_NOT_READY (device not ready)"):
        end.seconds_since(start)
    end.wait()
    assert abs(end.seconds_since(start) - (1 << 20) / 1e9) < 1e-6
    with raises(DeviceFailed, "CUDA_ERROR_INVALID_HANDLE"):
        copy(stream, *memory()).seconds_since(start)


def refusals():
    here = driver()
    source, destination = memory()
    stream = here.stream(0)
    with raises(DeviceFailed, "cuMemcpyHtoDAsync: CUDA_ERROR_INVALID_CONTEXT (invalid device context)"):
        stream.copy(destination.ctypes.data, source.ctypes.data, source.nbytes)
    here.lock(0, source.ctypes.data, source.nbytes)
    with raises(NotPageLocked, "4096 bytes", "cuMemHostRegister: CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"):
        here.lock(0, source.ctypes.data, source.nbytes)
    copied = copy(stream, source, destination)
    copied.wait()
    here.unlock(0, source.ctypes.data)
    assert stub.locked == 0 and stub.violations == 0
    with raises(DeviceFailed, "cuMemHostUnregister: CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"):
        here.unlock(0, source.ctypes.data)
    for status, text in ((2, "CUDA_ERROR_OUT_OF_MEMORY (out of memory)"), (4242, "4242")):
        stub.lock_status = status
        with raises(NotPageLocked, text):
            here.lock(0, source.ctypes.data, source.nbytes)
    with raises(DeviceFailed, "cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"):
        here.stream(1)
    stream.close()
    with raises(DeviceFailed, "CUDA_ERROR_INVALID_HANDLE"):
        stream.close()
    assert library.stub_depth() == 0


def several_devices():
    stub.devices = 2
    here = driver()
    arrays = memory()
    for ordinal, array in enumerate(arrays):
        own(array, ordinal)
    assert [here.ordinal_of("/device:GPU:0", array.ctypes.data) for array in arrays] == [0, 1]
    stray = np.zeros(8)
    with raises(DeviceFailed, "cuPointerGetAttribute: CUDA_ERROR_INVALID_VALUE (invalid argument)"):
        here.ordinal_of("/device:GPU:0", stray.ctypes.data)
    streams = [here.stream(ordinal) for ordinal in (0, 1, 0)]
    assert stub.retained == 2
    source, destination = arrays
    with streams[0], streams[1]:
        inner = streams[1].record()
        with raises(DeviceFailed, "CUDA_ERROR_INVALID_CONTEXT"):
            streams[0].copy(destination.ctypes.data, source.ctypes.data, source.nbytes)
    with streams[0]:
        inner.wait()
        streams[0].copy(destination.ctypes.data, source.ctypes.data, source.nbytes)
        streams[0].record().wait()
    assert (source == destination).all() and library.stub_depth() == 0


def lost():
    here = driver()
    stream = here.stream(0)
    source, destination = memory()
    before = copy(stream, source, destination)
    stub.fails_at = 2
    with raises(DeviceFailed, "cuMemcpyHtoDAsync: CUDA_ERROR_ILLEGAL_ADDRESS (an illegal memory access"):
        copy(stream, source, destination)
    for call in (before.wait, stream.close, lambda: here.stream(0), lambda: here.unlock(0, 4096)):
        with raises(DeviceFailed, "CUDA_ERROR_ILLEGAL_ADDRESS"):
            call()
    with raises(NotPageLocked, "CUDA_ERROR_ILLEGAL_ADDRESS"):
        here.lock(0, source.ctypes.data, source.nbytes)
    assert not destination.any() and library.stub_depth() == 0
    logging.basicConfig(level=logging.INFO)  # on stderr, which is to stay empty
    del before
    gc.collect()


def threads():
    here = driver()

    def work(seed):
        stream = here.stream(0)
        for turn in range(50):
            source, destination = memory(seed=100 * seed + turn)
            here.lock(0, source.ctypes.data, source.nbytes)
            copy(stream, source, destination).wait()
            here.unlock(0, source.ctypes.data)
            assert (source == destination).all()
        stream.close()
        return library.stub_depth()

    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(work, range(8)))
    assert stub.events == stub.streams == stub.locked == stub.violations == 0 and stub.copies == stub.landed == 400


def others_run_meanwhile():
    """What waits in the driver lets other threads of Python run: else nobody would open the gate."""
    stream = driver().stream(0)
    source, destination = memory()
    fence = copy(stream, source, destination)
    for call in (fence.wait, lambda: copy(stream, source, destination)):
        stub.gate = 1
        opener = threading.Timer(0.05, setattr, (stub, "gate", 0))
        opener.start()
        call()
        opener.join()
    with stream:
        stream.record().wait()
    stream.close()


def unseen_devices():
    missing = find_driver()
    assert isinstance(missing, Missing)
    assert missing.reason == (
        "CUDA's driver can't be used: cuInit: CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)"
    )


def older_driver():
    """Bindings of CUDA 13 need one of 12.8 to tell the time, and for nothing else."""
    stub.version = 12020
    stream = driver().stream(0)
    start = copy(stream, *memory(), timed=True)
    start.wait()
    try:
        assert start.seconds_since(start) == 0
    except DeviceFailed as error:
        assert "cuEventElapsedTime_v2" in str(error) and "not found" in str(error)  # noqa: PT017 - as in raises


def ends_with_fences():
    """Fences that are still there when the process ends, in a circle and as a global, the driver gone before."""
    stream = driver().stream(0)
    source, destination = memory()
    fence = copy(stream, source, destination)
    kept.append(fence)
    circle = [copy(stream, source, destination)]
    circle.append(circle)
    fence.wait()
    stub.fails_at, stub.fails_with = stub.copies + 1, 4242
    with raises(DeviceFailed):
        copy(stream, source, destination)
    logging.basicConfig(level=logging.INFO)


# Loads.


def loading(library_name, path):
    """Return the library, and what makes a model on the device of the stub, filled."""
    import tensorflow as tf

    from support import differential, environment  # noqa: F401 - sets up the devices

    tf.config.list_logical_devices()
    stub.devices = stub.devices or 1
    CudaDriver.serves = lambda self, device: device.endswith(("CPU:1", "CPU:2"))
    k = differential.LIBRARIES[library_name]

    def make():
        with tf.device("CPU:1"):
            model = k.Sequential([k.layers.Input((96,))])
            for units in (700, 33, 64, 5, 48, 1):
                model.add(k.layers.Dense(units, name=f"dense_{units}"))
                model.add(k.layers.BatchNormalization(name=f"norm_{units}"))
        return model

    def build():
        return differential.fresh(make)

    differential.saved(build, Path(path))
    return differential, build


def small(**options):
    from support.options import load_options

    return load_options(slot_bytes=16 << 10, fused_bytes=4 << 10, **options)


def same(differential, build, path, **options):
    """Load by both; return our report."""
    import fastassign

    stock, ours = (differential.perturb(build(), 3) for _ in range(2))
    stock.load_weights(path)
    report = fastassign.load_weights(ours, path, options=small(**options))
    different = differential.differences(differential.snapshot(stock), differential.snapshot(ours))
    assert not different, different
    assert all(variable.device.endswith("CPU:1") for variable in ours.variables if hasattr(variable, "device"))
    return report


def idle():
    from fastassign.runtime import process_runtime

    gc.collect()
    assert (
        process_runtime().staging.leased_bytes == 0
        and stub.streams == stub.events == stub.violations == library.stub_depth() == 0
    )


def one_load(differential, build, path):
    from fastassign.runtime import process_runtime

    for options in ({}, {"cut": "split"}, {"cut": "function"}, {"device_threads": 4}, {"page_lock": True}):
        report = same(differential, build, path, **options)
        assert set(report.routes) == {"direct", "fused"} and not report.fallbacks
        idle()
        assert stub.locked > 0 and stub.copies == stub.landed > 0
    process_runtime().staging.release()
    assert stub.locked == 0
    stub.lock_status = 2
    report = same(differential, build, path)
    (fallback,) = report.fallbacks
    assert "could not be page-locked: cuMemHostRegister: CUDA_ERROR_OUT_OF_MEMORY (out of memory)" in fallback
    with raises(NotPageLocked, "CUDA_ERROR_OUT_OF_MEMORY"):
        same(differential, build, path, page_lock=True)
    stub.lock_status = 0
    idle()


def many_loads(differential, build, path):
    import fastassign

    model, stock = build(), build()
    with fastassign.Loader(model, options=small()) as loader:
        for seed in range(4):
            differential.saved(build, Path(path), seed=seed)
            stock.load_weights(path)
            loader.load(path)
            assert not differential.differences(differential.snapshot(stock), differential.snapshot(model))
    idle()


def a_load_to_the_second(differential, build, path):
    find_driver.cache_clear()
    stub.devices = 2
    library.stub_own(ctypes.c_size_t(4096), ctypes.c_size_t(1 << 62), 1)
    same(differential, build, path)
    assert driver().count == 2 and list(driver()._contexts) == [1]
    assert stub.copies == stub.landed
    idle()


def a_load_that_loses_the_device(differential, build, path):
    import fastassign
    from fastassign.runtime import process_runtime

    options = small(device_window_bytes=32 << 10)
    stock, ours = differential.perturb(build(), 3), differential.perturb(build(), 5)
    stock.load_weights(path)
    before = stub.copies
    fastassign.load_weights(build(), path, options=options)
    old, new = differential.snapshot(ours), differential.snapshot(stock)
    stub.fails_at = stub.copies + (stub.copies - before) - 1  # the last but one
    try:
        fastassign.load_weights(ours, path, options=options)
    except DeviceFailed as error:
        assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(error)  # noqa: PT017 - as in raises
        assigned = len(error.assigned)
    else:
        raise AssertionError("nothing was raised")
    now = differential.snapshot(ours)
    changed = len(differential.differences(old, now))
    assert 0 < assigned < len(old) and changed == assigned == len(old) - len(differential.differences(new, now))
    assert process_runtime().staging.leased_bytes == 0 and library.stub_depth() == 0
    with raises(DeviceFailed, "CUDA_ERROR_ILLEGAL_ADDRESS"):
        fastassign.load_weights(ours, path, options=options)


def loads(library_name, path):
    """One after the other: each process would spend most of its time with importing TensorFlow."""
    differential, build = loading(library_name, path)
    one_load(differential, build, path)
    if library_name == "keras":
        many_loads(differential, build, path)
        a_load_to_the_second(differential, build, path)
    a_load_that_loses_the_device(differential, build, path)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
