"""A device that does not exist: its memory is a logical CPU device's, and its copies land only when somebody waits.

It stands where CUDA's driver stands (``fastassign.devices.cuda``). It notices what a real one would not: memory that
is read into while it is still copied from, copies out of memory that was given back and into memory that is a
variable's already, work that is forgotten. And it counts what memory is taken, here and there.
"""

import ctypes
import threading
import weakref
from collections import Counter
from contextlib import contextmanager

import numpy as np

from fastassign.errors import DeviceFailed, NotPageLocked
from fastassign.kernels.cast import cast_bits

HOST = "/job:localhost/replica:0/task:0/device:CPU:0"
DEVICES = tuple(f"/job:localhost/replica:0/task:0/device:CPU:{i}" for i in (1, 2))

# What new memory holds, and memory that was read into too early.
POISON = 0xA5


class SimulatedDriver:
    """A driver of simulated devices.

    Parameters
    ----------
    kernels : bool
        Whether kernels run there.
    lockable_bytes : int, optional
        How much memory the system page-locks.
    fails_at : int, optional
        The copy, counted from 1, at which the device is lost.

    Attributes
    ----------
    violations : list of str
        What went wrong.
    copies, launches, events : list
        All copies and kernels; and, in order, what was allocated and addressed.
    locked : dict of int to int
        Page-locked memory: bytes by address.
    memory : dict of int to int
        What was allocated on devices and is nobody's yet: bytes by address.
    peaks : Counter
        The most bytes of that at a time, by device; and of page-locked memory, as ``"locked"``.
    """

    def __init__(self, *, kernels=True, lockable_bytes=None, fails_at=None):
        self._kernels, self._lockable_bytes, self._fails_at = kernels, lockable_bytes, fails_at
        self.locked = {}
        self.streams = []
        self.violations = []
        self.copies = []
        self.launches = []
        self.events = []
        self.memory = {}
        self.taken, self.peaks = Counter(), Counter()
        self.pool = None
        self.is_lost = False
        self.lock_calls = 0
        # Held by a thread that runs TensorFlow's ops on a simulated device.
        self.ops = threading.RLock()
        self._state = threading.RLock()

    # What fastassign calls.

    def serves(self, device):
        return device in DEVICES

    def kernels_missing(self):
        return "" if self._kernels else "numba can't use CUDA: this one is simulated without"

    def ordinal_of(self, device, address):
        self.check()
        assert address % 64 == 0
        return DEVICES.index(device)

    def stream(self, ordinal):
        self.check()
        self.streams.append(SimulatedStream(self, ordinal))
        return self.streams[-1]

    def lock(self, ordinal, address, nbytes):
        self.lock_calls += 1
        assert address % 4096 == 0 and nbytes % 4096 == 0
        assert not any(address < start + size and start < address + nbytes for start, size in self.locked.items())
        if self._lockable_bytes is not None and sum(self.locked.values()) + nbytes > self._lockable_bytes:
            raise NotPageLocked(f"{nbytes} bytes of host memory could not be page-locked", hint="simulated")
        self.locked[address] = nbytes
        self.peaks["locked"] = max(self.peaks["locked"], sum(self.locked.values()))

    def unlock(self, ordinal, address):
        if any(address <= op.source < address + self.locked[address] for op in self.pending):
            self.violations.append("memory was unlocked while it was copied from")
        del self.locked[address]

    # What happens behind.

    def check(self):
        if self.is_lost:
            raise DeviceFailed("the simulated device is lost", hint="simulated")

    @property
    def pending(self):
        found = []
        for stream in list(self.streams):
            with stream.lock:
                found += [op for op in stream.queue if isinstance(op, _Copy)]
        return found

    def began_copy(self, op):
        with self._state:
            self.copies.append(op)
            is_last = self._fails_at is not None and len(self.copies) == self._fails_at
        if is_last:
            # Not under the lock: what lands takes it, and has the stream's already.
            self.lose()
        self.check()

    def lose(self):
        """Lose the device: what is in its streams never lands."""
        self.is_lost = True
        for stream in self.streams:
            with stream.lock:
                stream.queue.clear()

    def repair(self):
        """Give the device back, and lose it no more."""
        self.is_lost, self._fails_at = False, None

    def owns(self, address, nbytes):
        """Whether memory on a device is a load's, and not a variable's or nobody's."""
        with self._state:
            # A copy: the collector may let go of memory at any step.
            return any(_holds(start, size, address, nbytes) for start, size in self.memory.copy().items())

    def may_land(self, op):
        buffers = list(self.pool._leased)
        if not any(_holds(buffer.address, buffer.memory.nbytes, op.source, op.nbytes) for buffer in buffers):
            self.violations.append("memory was copied from that was given back")
        elif not self.owns(op.destination, op.nbytes):
            self.violations.append("memory was copied to that is not the load's any more")
        else:
            return True
        return False

    def allocated(self, tensor, address, device):
        nbytes = tensor.dtype.size * tensor.shape.num_elements()
        _memory(address, nbytes)[:] = POISON
        with self._state:
            self.events.append(("empty", device))
            self.memory[address] = nbytes
            self.taken[device] += nbytes
            self.peaks[device] = max(self.peaks[device], self.taken[device])
        weakref.finalize(tensor, self._let_go, address, nbytes, device).atexit = False

    def _let_go(self, address, nbytes, device):
        with self._state:
            self.memory.pop(address, None)
            self.taken[device] -= nbytes

    def watched(self, make_source=lambda source: source):
        """Return what makes a source that notices reads into memory that is still copied from, and poisons it."""

        def make(source):
            return _Watched(make_source(source), self)

        return make


class _Watched:
    def __init__(self, inner, driver):
        self._inner, self._driver = inner, driver

    def preadv(self, buffers, offset):
        count = self._inner.preadv(buffers, offset)
        pending = self._driver.pending
        for buffer in buffers:
            if not len(buffer):
                continue
            array = np.frombuffer(buffer, dtype=np.uint8)
            start = array.ctypes.data
            if any(start < op.source + op.nbytes and op.source < start + array.nbytes for op in pending):
                self._driver.violations.append("memory was read into while it was copied from")
                array[:] = POISON
        return count


def _holds(start, size, address, nbytes):
    return start <= address and address + nbytes <= start + size


class _Copy:
    def __init__(self, driver, destination, source, nbytes):
        self._driver, self.destination, self.source, self.nbytes = driver, destination, source, nbytes

    def land(self):
        # What is wrong is noted and not done: it would write over what the process needs.
        if self._driver.may_land(self):
            ctypes.memmove(self.destination, self.source, self.nbytes)


class _Kernel:
    def __init__(self, driver, launch):
        self._driver, self.launch = driver, launch

    def land(self):
        launch = self.launch
        wide, narrow = (1, 1) if launch.kind == "copy" else (4, 2)
        if not self._driver.owns(launch.table, 24 * launch.rows):
            self._driver.violations.append("a kernel worked by a table that is not the load's any more")
            return
        for first, start, count in _memory(launch.table, 24 * launch.rows, np.int64).reshape(-1, 3):
            is_told_right = (
                0 <= count <= launch.longest
                and 0 <= first * wide <= launch.source_nbytes - count * wide
                and 0 <= start * narrow <= launch.destination_nbytes - count * narrow
            )
            if not is_told_right:
                self._driver.violations.append("a kernel was told to work beyond its memory")
                return
            places = (launch.source + wide * first, wide * count), (launch.destination + narrow * start, narrow * count)
            if not all(self._driver.owns(*place) for place in places):
                self._driver.violations.append("a kernel worked on memory that is not the load's any more")
            elif launch.kind == "copy":
                _memory(*places[1])[:] = _memory(*places[0])
            else:
                cast_bits(_memory(*places[0], np.uint32), _memory(*places[1], np.uint16), launch.kind)


def _memory(address, nbytes, dtype=np.uint8):
    return np.frombuffer((ctypes.c_uint8 * int(nbytes)).from_address(int(address)), dtype=dtype)


class SimulatedStream:
    def __init__(self, driver, ordinal):
        self.driver, self.ordinal = driver, ordinal
        self.queue, self.landed = [], 0
        self.is_closed = False
        self.lock = threading.RLock()
        self._inside = threading.local()

    def __enter__(self):
        self._inside.depth = getattr(self._inside, "depth", 0) + 1
        return self

    def __exit__(self, kind, error, trace):
        self._inside.depth -= 1

    def _is_inside(self):
        return getattr(self._inside, "depth", 0) > 0

    def _put(self, op):
        assert self._is_inside(), "a thread that is not in the device's context"
        assert not self.is_closed
        with self.lock:
            self.driver.check()
            self.queue.append(op)

    def copy(self, destination, source, nbytes):
        op = _Copy(self.driver, destination, source, nbytes)
        self.driver.began_copy(op)
        self._put(op)

    def scatter(self, launch):
        self.driver.check()
        self.driver.launches.append(launch)
        self._put(_Kernel(self.driver, launch))

    def record(self):
        self.driver.check()
        assert self._is_inside(), "a thread that is not in the device's context"
        with self.lock:
            return SimulatedFence(self, self.landed + len(self.queue))

    def land(self, position):
        with self.lock:
            while self.landed < position and self.queue:
                self.queue[0].land()
                self.queue.pop(0)
                self.landed += 1

    def close(self):
        if self.queue and not self.driver.is_lost:
            self.driver.violations.append("a stream was closed with work in it")
        self.is_closed = True


class SimulatedFence:
    def __init__(self, stream, position):
        self._stream, self._position = stream, position

    def wait(self):
        self._stream.driver.check()
        self._stream.land(self._position)


@contextmanager
def simulated(monkeypatch, **how):
    """Put a simulated driver in place, with a pool of its own, and check afterwards that nothing was done wrong."""
    from fastassign.assigning.device import tensors
    from fastassign.devices import staging
    from support.running import set_runtime

    driver = SimulatedDriver(**how)
    pool = driver.pool = staging.StagingPool()
    allocate, locate = tensors.empty, tensors.address

    def empty(shape, dtype, where):
        tensor = allocate(shape, dtype, where)
        driver.allocated(tensor, locate(tensor, where), where)
        return tensor

    def address(tensor, where):
        driver.events.append(("address", where))
        return locate(tensor, where)

    placed = tensors.placed

    @contextmanager
    def alone(device):
        # TensorFlow mixes up the inputs of ops that two threads run on one logical CPU device other than the first
        # (docs/internals/tensorflow.md, section 9); on a GPU it does not.
        with driver.ops, placed(device):
            yield

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "placed", alone)
        set_runtime(patch, find_driver=lambda: driver, staging=pool, make_source=driver.watched())
        patch.setattr(tensors, "empty", empty)
        patch.setattr(tensors, "address", address)
        yield driver
    assert not driver.violations
    assert pool.leased_bytes == 0
    pool.release()
    assert not driver.locked
    assert not [stream for stream in driver.streams if not stream.is_closed], "a stream was not closed"
