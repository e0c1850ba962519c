"""Loads in the background: what the future tells, and the order of what happens."""

import asyncio
import concurrent.futures
import threading

import pytest

import fastassign as fa
from support import differential as d
from support.loading import KEPT, LONG, MADE, Lock, running, together, values, wide


class TestLoadAsync:
    @pytest.fixture
    def loader(self, model):
        with fa.Loader(model) as found:
            yield found

    def test_the_result_is_a_report(self, files, contents, loader, model):
        future = loader.load_async(files[1])
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(LONG).assigned == 6
        assert future.exception() is None
        assert future.path == str(files[1])
        assert (future.done(), future.running(), future.cancelled(), future.cancel()) == (True, False, False, False)
        assert values(model) == contents[1]

    @pytest.mark.parametrize("first", [0, 1, 2, 5])
    def test_nothing_changes_while_it_reads(self, first, files, contents, model, brake):
        """However far it came."""
        options = fa.LoadOptions(read_bytes=4096, gap_bytes=0, threads=1, arena_bytes=0)
        path, before = d.save(d.fill(wide(), 1), files[1].with_name("wide.weights.h5")), wide()
        d.perturb(before, 0.5)
        old, brake.first = values(before), first
        with fa.Loader(before, options=options) as loader:
            future = loader.load_async(path)
            assert brake.reached.wait(LONG)
            assert (future.done(), future.running()) == (False, True)
            assert brake.reads == first + 1
            assert values(before) == old
            brake.may_go.set()
            assert future.result(LONG).assigned == len(old)
        assert all(new != one for new, one in zip(values(before), old, strict=True))

    def test_nothing_changes_until_the_lock_is_free(self, files, contents, model):
        lock, old = Lock(), values(model)
        with together(model, lock) as loader:
            with lock.inner:
                future = loader.load_async(files[1])
                assert lock.asked.wait(LONG)
                assert not future.done()
                assert values(model) == old
                with pytest.raises(concurrent.futures.TimeoutError):
                    future.result(0)
            future.result(LONG)
        assert values(model) == contents[1]

    def test_progress(self, files, model, brake):
        lock = Lock()
        with together(model, lock) as loader, lock.inner:
            future = loader.load_async(files[1])
            assert brake.reached.wait(LONG)
            assert future.progress is None
            brake.may_go.set()
            assert lock.asked.wait(LONG)
            read = future.progress
            assert read.read_bytes == read.total_bytes == sum(map(len, values(model)))
            assert (read.done_bytes, read.done_variables, read.total_variables, read.variable) == (0, 0, 6, "")
            lock.inner.release()
            future.result(LONG)
            lock.inner.acquire()
            done = future.progress
            assert (done.done_bytes, done.done_variables) == (done.total_bytes, 6)
            assert done.seconds >= read.seconds
            assert done.variable

    def test_they_run_in_order(self, files, contents, loader, model, brake):
        order, seen = [], []

        def note(future):
            order.append(future.path)
            seen.append(values(model))

        futures = [loader.load_async(files[seed]) for seed in (1, 2, 2, 1, 2)]
        for future in futures:
            future.add_done_callback(note)
        brake.may_go.set()
        done, rest = concurrent.futures.wait(futures, LONG)
        loader.close()  # the callback of the last is over
        assert (done, rest) == (set(futures), set())
        assert order == [future.path for future in futures]
        assert [future.result().plan for future in futures] == [MADE, KEPT, KEPT, KEPT, KEPT]
        assert seen == [contents[seed] for seed in (1, 2, 2, 1, 2)]

    def test_as_completed(self, files, loader, brake):
        futures = [loader.load_async(files[seed]) for seed in (1, "bad", 2)]
        futures[2].cancel()
        brake.may_go.set()
        found = [type(future.exception()) for future in concurrent.futures.as_completed(futures, LONG)]
        assert sorted(kind.__name__ for kind in found) == ["Cancelled", "Mismatch", "NoneType"]

    def test_awaited(self, files, contents, loader, model):
        async def serve():
            return await asyncio.wait_for(asyncio.wrap_future(loader.load_async(files[1])), LONG)

        assert asyncio.run(serve()).assigned == 6
        assert values(model) == contents[1]

    def test_awaited_and_cancelled(self, files, loader, model, brake):
        old, futures = values(model), []

        async def serve():
            futures.append(loader.load_async(files[1]))
            task = asyncio.wrap_future(futures[0])
            await asyncio.get_running_loop().run_in_executor(None, brake.reached.wait, LONG)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)  # the loop passes it on
            brake.may_go.set()

        asyncio.run(serve())
        assert isinstance(futures[0].exception(LONG), fa.Cancelled)
        assert values(model) == old

    def test_awaited_and_failed(self, files, loader):
        async def serve():
            await asyncio.wrap_future(loader.load_async(files["bad"]))

        with pytest.raises(fa.Mismatch, match="could not be loaded"):
            asyncio.run(serve())

    def test_after_an_error_in_a_callback(self, files, contents, loader, model):
        """The thread goes on; concurrent.futures logs such errors."""
        future = loader.load_async(files[1])
        future.add_done_callback(lambda _: 1 / 0)
        future.result(LONG)
        loader.load_async(files[2]).result(LONG)
        assert values(model) == contents[2]

    def test_a_callback_may_load(self, files, contents, loader, model):
        over = threading.Event()

        def more(_):
            loader.load(files[2])
            loader.load_async(files[1]).add_done_callback(lambda _: over.set())

        loader.load_async(files[1]).add_done_callback(more)
        assert over.wait(LONG)
        assert values(model) == contents[1]

    def test_load_while_it_runs(self, files, contents, loader, model, brake):
        future = loader.load_async(files[1])
        assert brake.reached.wait(LONG)
        with running(lambda: loader.load(files[2])):
            brake.may_go.set()
        assert future.done()
        assert values(model) == contents[2]
