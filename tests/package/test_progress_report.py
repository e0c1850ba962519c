"""What a load tells: progress while it runs, a report when it is done, a plan before."""

import io
import json
import sys
import threading

import h5py
import keras
import numpy as np
import pytest

import fastassign as fa
from fastassign.progress import ProgressEvent, reporting
from fastassign.report import Report


def build(units=(7, 5, 3)):
    keras.backend.clear_session(free_memory=False)
    return keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(n) for n in units)])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.weights.h5"
    build().save_weights(path)
    return path


class TestProgress:
    @pytest.mark.parametrize("staging", [1 << 20, 200])
    @pytest.mark.parametrize("threads", [1, 3])
    def test_events_grow_to_the_total(self, path, staging, threads):
        model, events, who = build(), [], set()

        def progress(event):
            events.append(event)
            who.add(threading.current_thread())

        options = fa.LoadOptions(max_staging_bytes=staging, threads=threads)
        report = fa.load_weights(model, path, progress=progress, options=options)
        sizes = {variable.path: int(np.prod(variable.shape)) * 4 for variable in model.variables}
        assert who == {threading.current_thread()}
        assert {event.total_bytes for event in events} == {sum(sizes.values())} == {report.nbytes}
        assert {event.total_variables for event in events} == {6}
        assert [event.done_variables for event in events] == [1, 2, 3, 4, 5, 6]
        assert sorted(event.variable for event in events) == sorted(sizes)
        done = 0
        for event in events:
            done += sizes[event.variable]
            assert event.done_bytes == done
        seconds = [event.seconds for event in events]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0

    def test_the_variable_has_its_value_when_it_is_told(self, path):
        model, other = build(), build()
        other.load_weights(path)
        expected = {variable.path: variable.numpy() for variable in other.variables}
        told = []

        def progress(event):
            (variable,) = [variable for variable in model.variables if variable.path == event.variable]
            told.append(np.array_equal(variable.numpy(), expected[event.variable]))

        fa.load_weights(model, path, progress=progress)
        assert told == [True] * 6

    def test_of_a_plan(self, path):
        planned, given = [], []
        plan = fa.plan(build(), path, progress=planned.append)
        plan.execute()
        assert len(planned) == 6
        plan.execute(progress=given.append)
        assert (len(planned), len(given)) == (6, 6)
        plan.execute(progress=False)
        assert (len(planned), len(given)) == (6, 6)

    def test_an_error_of_the_callback_is_passed_on(self, path):
        def progress(event):
            raise ZeroDivisionError("in the callback")

        with pytest.raises(ZeroDivisionError, match="in the callback"):
            fa.load_weights(build(), path, progress=progress)

    def test_true_shows_nothing_where_there_is_no_terminal(self, path, capsys):
        fa.load_weights(build(), path, progress=True)
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "")

    def test_a_bar_on_a_terminal(self, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        with reporting(True) as callback:
            for done in (1, 50, 100):
                callback(ProgressEvent(done, done, 100, done, 100, 0.1, "a/[/b]:x:"))
        assert "100/100 bytes" in terminal.getvalue()
        assert "a/[/b]:x:" in terminal.getvalue()

    def test_nothing_is_asked_for(self):
        for progress in (None, False):
            with reporting(progress) as callback:
                assert callback is None


class TestReport:
    def test_of_a_load(self, path):
        model = build()
        report = fa.load_weights(model, path)
        assert report.file == str(path)
        assert report.assigned == 6
        assert report.nbytes == sum(variable.numpy().nbytes for variable in model.variables)
        assert report.routes == {"arena": 6}
        assert report.cast == report.skipped == report.repaired == report.missing == report.unexpected == ()
        assert set(report.seconds) == {"index", "match", "plan", "wait", "assign", "execute", "total"}
        assert all(seconds >= 0 for seconds in report.seconds.values())
        assert report.seconds["total"] >= report.seconds["execute"] >= report.seconds["assign"]
        assert report.gbps == pytest.approx(report.nbytes / report.seconds["total"] / 1e9)
        assert report.share_of_limit is None
        data = json.loads(json.dumps(report.to_dict()))
        assert data["assigned"] == 6
        assert data["routes"] == {"arena": 6}
        assert data["gbps"] == report.gbps
        assert "6 variables (arena 6)" in str(report)

    def test_what_was_cast_and_left_over(self, path):
        with h5py.File(path, "r+") as file:
            group = file["layers/dense/vars"]
            kernel = group["0"][()].astype("f8")
            del group["0"]
            group["0"] = kernel
            file["layers/extra/vars/0"] = np.ones(3)
        report = fa.load_weights(build(), path)
        assert report.cast == ("sequential/dense/kernel: <f8 to float32",)
        assert report.routes == {"assign": 1, "arena": 5}
        assert report.unexpected == ("layers/extra/vars/0",)
        text = str(report)
        assert "sequential/dense/kernel: <f8 to float32" in text
        assert "layers/extra/vars/0" in text

    def test_what_was_skipped(self, path):
        model = build((7, 6, 3))
        with pytest.warns(UserWarning, match="could not be loaded"):
            report = fa.load_weights(model, path, skip_mismatch=True)
        assert report.assigned == 2
        assert len(report.skipped) == 2
        assert sorted(report.missing) == [
            f"sequential/{layer}/{name}" for layer in ("dense_1", "dense_2") for name in ("bias", "kernel")
        ]
        json.dumps(report.to_dict())

    @pytest.mark.parametrize("name", ["[/red]", "[bold]x", ":smile:", "a\\[b", "[link=http://x]y", "ü", "\x1b[31m"])
    def test_any_name_prints(self, name):
        report = Report(file=f"/tmp/{name}", assigned=1, skipped=(name,), missing=(name,) * 7, routes={"owned": 1})
        text = str(report)
        if name.isprintable():
            assert text.count(name) == 1 + 1 + 5
        assert "\x1b" not in text
        assert "and 2 more" in text

    def test_it_is_plain_text_whatever_the_terminal(self, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        assert "\x1b" not in str(Report(file="f", assigned=1))

    def test_the_share_of_the_limit(self):
        report = Report(file="f", assigned=1, nbytes=10**9, seconds={"total": 0.5}, limit_gbps=4.0)
        assert report.gbps == 2.0
        assert report.share_of_limit == 0.5
        assert "2.00 GB/s, 50% of the warm limit" in str(report)
        assert Report(file="f", assigned=0).gbps == 0.0


def test_a_plan_is_printed_and_written(path):
    plan = fa.plan(build(), path)
    data = json.loads(json.dumps(plan.to_dict()))
    assert [row["record"] for row in data["tensors"]] == [
        f"layers/{layer}/vars/{i}" for layer in ("dense", "dense_1", "dense_2") for i in (0, 1)
    ]
    assert (data["library"], data["layout"], data["atomic"]) == ("keras", "keras3", False)
    text = str(plan)
    for variable in build().variables:
        assert variable.path in text
    assert f"6 tensors, {data['bytes']} bytes in {data['reads']} reads" in text
