"""The simulated device as benchmarks and diagnosis need it: with a clock, and with what a driver tells of its cards."""

import ctypes
import time
from contextlib import contextmanager
from types import SimpleNamespace

from support import simulated as base

NAMES = ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR", "ASYNC_ENGINE_COUNT", "MULTIPROCESSOR_COUNT",
         "PAGEABLE_MEMORY_ACCESS")  # fmt: skip


class CardStream(base.SimulatedStream):
    def record(self, *, timed=False):
        fence = super().record()
        fence.at = time.perf_counter() if timed else None
        fence.seconds_since = lambda earlier: max(fence.at - earlier.at, 1e-6)
        return fence


class CardDriver(base.SimulatedDriver):
    """A simulated driver that has the functions of CUDA's that are called beside the seam."""

    bindings = SimpleNamespace(
        CU_MEMHOSTALLOC_PORTABLE=1,
        CUdevice_attribute=SimpleNamespace(**{f"CU_DEVICE_ATTRIBUTE_{name}": i + 1 for i, name in enumerate(NAMES)}),
    )

    def may_land(self, op):
        """Let every copy land: benchmarks copy out of memory of their own, which no load leased."""
        return True

    def stream(self, ordinal):
        self.check()
        self.streams.append(CardStream(self, ordinal))
        return self.streams[-1]

    def context(self, ordinal):
        return f"context {ordinal}"

    def call(self, name, *arguments):
        return getattr(self, f"_{name}")(*arguments)

    def _cuCtxPushCurrent(self, context):
        pass

    def _cuCtxPopCurrent(self):
        pass

    def _cuCtxGetCurrent(self):
        return "context 0"

    def _cuDeviceGet(self, ordinal):
        return ordinal

    def _cuDriverGetVersion(self):
        return 13010

    def _cuDeviceGetName(self, length, handle):
        return b"Simulated\0\0"

    def _cuDeviceGetPCIBusId(self, length, handle):
        return b"0000:00:00.0\0"

    def _cuDeviceTotalMem(self, handle):
        return 1 << 30

    def _cuDeviceGetAttribute(self, attribute, handle):
        return attribute

    def _cuMemGetInfo(self):
        return 1 << 29

    def _cuMemHostAlloc(self, nbytes, flags):
        memory = (ctypes.c_uint8 * (nbytes + 4096))()
        address = -(-ctypes.addressof(memory) // 4096) * 4096
        self.locked[address] = nbytes
        self.kept = {**getattr(self, "kept", {}), address: memory}
        return address

    def _cuMemFreeHost(self, address):
        del self.locked[address], self.kept[address]


@contextmanager
def simulated_card(monkeypatch, **how):
    """Put such a driver in place of the simulated one."""
    with monkeypatch.context() as patch:
        patch.setattr(base, "SimulatedDriver", CardDriver)
        with base.simulated(monkeypatch, **how) as driver:
            yield driver
