"""Sources that behave as badly as storage may, and worse; see ``fastassign.streaming.source``."""

import errno
import random
import threading
import time


class Faulty:
    """A file that is read with faults.

    Parameters
    ----------
    source : Source
        What is read.
    before : callable, optional
        Called with (number of the call, offset, bytes asked for) before each read; may raise, or sleep.
    cut : callable, optional
        Called with the same; returns the most bytes to read.
    """

    def __init__(self, source, *, before=None, cut=None):
        self._inner, self._before, self._cut = source, before, cut
        self._lock = threading.Lock()
        self.calls = 0
        self.threads = set()

    def preadv(self, buffers, offset):
        with self._lock:
            self.calls += 1
            number = self.calls
            self.threads.add(threading.current_thread().name)
        wanted = sum(map(len, buffers))
        if self._before is not None:
            self._before(number, offset, wanted)
        if self._cut is not None:
            buffers = first_bytes(buffers, self._cut(number, offset, wanted))
        return self._inner.preadv(buffers, offset) if buffers else 0


def first_bytes(buffers, count):
    """Return buffers for the first ``count`` bytes."""
    taken = []
    for buffer in buffers:
        if count <= 0:
            break
        taken.append(buffer[:count])
        count -= len(taken[-1])
    return taken


def faulty(**how):
    """Return what a ``Runtime`` takes as ``make_source``; the source it made is its attribute ``made``."""

    def make(source):
        make.made = Faulty(source, **how)
        return make.made

    return make


def one_byte_at_a_time():
    return faulty(cut=lambda *_: 1)


def random_shares(seed):
    rng = random.Random(seed)
    return faulty(cut=lambda number, offset, wanted: rng.randint(1, wanted))


def interrupted(every=2):
    """Return early from a system call, as a signal makes it."""

    def before(number, offset, wanted):
        if number % every:
            raise InterruptedError(errno.EINTR, "Interrupted system call")

    return faulty(before=before, cut=lambda number, offset, wanted: max(1, wanted // 2))


def fails_at(position):
    """Fail where the medium is damaged: at one byte of the file."""

    def before(number, offset, wanted):
        if offset <= position < offset + wanted:
            raise OSError(errno.EIO, "Input/output error")

    return faulty(before=before)


def ends_at(position):
    return faulty(cut=lambda number, offset, wanted: max(0, min(wanted, position - offset)))


def nasty_by_thread():
    """Let each thread have a fault of its own: one is slow, one gets single bytes, one is interrupted."""
    kinds = {}

    def kind():
        return kinds.setdefault(threading.get_ident(), len(kinds) % 3)

    def before(number, offset, wanted):
        if kind() == 0:
            time.sleep(0.002)
        elif kind() == 1 and number % 3:
            raise InterruptedError(errno.EINTR, "Interrupted system call")

    return faulty(before=before, cut=lambda number, offset, wanted: wanted if kind() == 0 else 1 + number % 97)


def slow(seconds):
    return faulty(before=lambda *_: time.sleep(seconds))
