"""The threads that read: jobs and errors come back as they end, and no thread outlives the block."""

import threading
import time

import pytest

from fastassign.streaming.workers import Workers


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastassign-reader")]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_job_is_done_once_and_comes_back(count):
    done = []
    with Workers(count) as workers:
        assert len(readers()) == count - 1
        for i in range(500):
            workers.submit(i, lambda i=i: done.append(i))
        assert sorted(workers.collect() for _ in range(500)) == list(range(500))
    assert sorted(done) == list(range(500))
    assert readers() == []


@pytest.mark.parametrize("count", [2, 8])
def test_jobs_come_back_as_they_end(count):
    first = threading.Event()
    with Workers(count) as workers:
        workers.submit(0, lambda: first.wait(60))
        while workers._jobs.qsize():  # a reader has it
            time.sleep(0.001)
        for i in range(1, 4):
            workers.submit(i, lambda: None)
        assert {workers.collect() for _ in range(3)} == {1, 2, 3}
        first.set()
        assert workers.collect() == 0


def test_the_owner_works_too():
    names = set()
    with Workers(1) as workers:
        workers.submit(7, lambda: names.add(threading.current_thread()))
        assert workers.collect() == 7
    assert names == {threading.current_thread()}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_an_error_comes_back_and_the_rest_is_dropped(count, kind):
    ran = []

    def fail():
        raise kind("from a job")

    with pytest.raises(kind, match="from a job"), Workers(count) as workers:
        workers.submit(0, fail)
        workers.collect()
        pytest.fail("collect returned")

    def until_stopped():
        while not workers._stopped:
            time.sleep(0.001)

    with pytest.raises(kind), Workers(count) as workers:
        for i in range(count - 1):
            workers.submit(i, until_stopped)
        while workers._jobs.qsize():
            time.sleep(0.001)
        workers.submit(99, fail)
        for _ in range(1000):
            workers.submit(100, lambda: ran.append(1))
        while True:
            workers.collect()
    assert ran == []
    assert readers() == []


def test_stopping_waits_for_jobs_that_have_begun():
    began, ended = threading.Event(), []

    def job():
        began.set()
        time.sleep(0.05)
        ended.append(1)

    with Workers(2) as workers:
        workers.submit(0, job)
        began.wait(60)
    assert ended == [1]  # so that no reader writes into a buffer that was let go


def test_stopping_twice_and_without_jobs():
    workers = Workers(3)
    workers.stop()
    workers.stop()
    assert readers() == []


def test_an_interrupt_while_a_thread_is_started(monkeypatch):
    """The thread runs, but does not know its own number yet: the others end all the same."""
    start, late = threading.Thread.start, []

    def interrupted(thread):
        if thread.name == "fastassign-reader-1":
            late.append(threading.Timer(0.05, start, (thread,)))
            start(late[0])
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    workers = Workers(4)
    entered = []

    def enter():
        with pytest.raises(KeyboardInterrupt):
            workers.__enter__()
        entered.append(True)

    entering = threading.Thread(target=enter, daemon=True)
    start(entering)
    entering.join(60)
    assert entered == [True]
    late[0].join(60)
    for thread in readers():
        thread.join(60)
    assert readers() == []
