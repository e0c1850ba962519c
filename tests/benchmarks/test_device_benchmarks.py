"""The benchmarks of a device, on the simulated one: that every line runs, and what comes out; never how fast."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import tensorflow as tf
from typer.testing import CliRunner

import fastassign
from fastassign.benchmarks.cases.models import gpt_like
from fastassign.benchmarks.device import card as cards
from fastassign.benchmarks.device import compare as device_compare
from fastassign.benchmarks.device import costs as device_costs
from fastassign.benchmarks.device import models as device_models
from fastassign.benchmarks.device import suite as device_suite
from fastassign.benchmarks.device import sweep as device_sweep
from fastassign.benchmarks.device.card import find_card
from fastassign.benchmarks.device.copies import CopySizes
from fastassign.benchmarks.limits.peak import with_peaks
from fastassign.benchmarks.questions import memory
from fastassign.benchmarks.questions import run as questions
from fastassign.benchmarks.steps import Steps
from fastassign.cli import app
from fastassign.cli.output import show_table
from fastassign.errors import NotPageLocked, Unsupported
from support.simulated import DEVICES, HOST
from support.simulated_card import simulated_card

KiB = 1 << 10


def counts_memory(device=DEVICES[0]):
    """Whether TensorFlow's allocator of a device keeps statistics: that of a CPU does with oneDNN alone."""
    try:
        tf.config.experimental.get_memory_info(device)
    except ValueError:
        return False
    return True


@pytest.fixture
def uncounted(monkeypatch):
    """A device whose allocator keeps no statistics, whatever the processor is."""

    def refuse(device):
        raise ValueError(f"Allocator stats not available for device '{device}'")

    monkeypatch.setattr(tf.config.experimental, "get_memory_info", refuse)
    monkeypatch.setattr(tf.config.experimental, "reset_memory_stats", refuse)


SIZES = CopySizes(
    total_bytes=1 << 20,
    slot_bytes=(64 * KiB, 16 * KiB),
    slots=3,
    threads=(1, 2),
    lock_bytes=256 * KiB,
    repeats=2,
)


@pytest.fixture
def driver(monkeypatch):
    with simulated_card(monkeypatch) as driver:
        yield driver


@pytest.fixture
def small(monkeypatch):
    """Small models in the place of the real ones."""

    def gpt():
        return gpt_like(vocabulary=300, width=48, blocks=1, context=16)

    def half():
        with device_models.policy("bfloat16"):
            return gpt()

    monkeypatch.setattr(device_models, "gpt_like", gpt)
    for name, build in (
        ("G", gpt),
        ("H", half),
        ("T", lambda: device_models.tiny_kernels(count=5)),
        ("X", lambda: device_models.large_kernels(width=64, inner=96, vocabulary=1000, blocks=1)),
    ):
        monkeypatch.setitem(device_models.CASES, name, dataclasses.replace(device_models.CASES[name], build=build))
    monkeypatch.setattr(device_costs, "VARIABLES", 20)
    monkeypatch.setattr(device_sweep, "KNOBS", [{"threads": 2}, {"fused_bytes": 0}])


def errors_in(data):
    """Return every error in a nested dict or list, with what stands beside it."""
    if isinstance(data, dict):
        own = [data] if data.get("error") else []
        return own + [found for value in data.values() for found in errors_in(value)]
    return [found for value in data for found in errors_in(value)] if isinstance(data, list) else []


def run(folder, *cases, **keywords):
    result = device_suite.run_device_suite(folder, device=DEVICES[0], cases=cases, sizes=SIZES, **keywords)
    for table in result.tables:
        assert all(len(row) == len(table.head) for row in table.rows)
        assert all(isinstance(cell, str) for row in table.rows for cell in row)
    return json.loads(json.dumps(result.to_dict()))


def test_limits_are_measured(driver, tmp_path):
    data = run(tmp_path, "limits")
    assert not errors_in(data)
    names = {row["limit"] for row in data["limits"]}
    assert names == {
        "pinned", "pageable", "pinned, copies of", "a file for the next", "page cache", "roof", "roof, slots of",
        "page-locking",
    }  # fmt: skip
    assert all(row["gbps"] > 0 and row["seconds"] > 0 for row in data["limits"])
    locking = [row for row in data["limits"] if row["limit"] == "page-locking"]
    assert len(locking) == 5
    assert all(row["lock_seconds_per_gb"] >= 0 and row["read_gbps"] > 0 for row in locking)
    assert not list(tmp_path.iterdir())


def test_the_roof_sends_the_whole_file(driver, tmp_path):
    from fastassign.benchmarks.device.roof import roof_rate

    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    roof_rate(find_card(DEVICES[0]), SIZES, path, 2, 16 * KiB)
    # Once to warm up, then each run.
    assert sum(copy.nbytes for copy in driver.copies) == 256_000 * (1 + SIZES.repeats)


def test_costs_are_measured(driver, small, tmp_path):
    data = run(tmp_path, "costs")
    assert not errors_in(data)
    assert all(row["seconds"] > 0 for row in data["costs"])
    constants = {row["constant"]: row["planned"] for row in data["costs"] if row["constant"]}
    assert constants.keys() == {"ASSIGN", "ALLOCATE", "OP", "FUNCTION_MAKE", "FUNCTION_CALL"}


@pytest.mark.processor
@pytest.mark.parametrize("case", ["G", "H", "T", "X"])
def test_a_case_is_loaded_every_way(driver, small, tmp_path, case):
    data = run(tmp_path, case)
    assert not errors_in(data)
    ways = {row["way"]: row for row in data["loads"]}
    asked = {way for way in device_compare.WAYS if not (case == "X" and way.startswith("fused"))}
    assert ways.keys() == {"stock", *device_compare.LIMITS, *asked}
    for name in device_compare.WAYS.keys() & ways.keys():
        row = ways[name]
        assert row["cold"] > 0
        assert len(row["runs"]["load"]) == len(row["runs"]["repeated"]) == 2
        assert {"load_gbps", "load_share_of_pinned", "load_share_of_page_cache", "repeated_share_of_roof"} <= row.keys()
        assert row["stock_over_load"] > 0
        assert row["stock_over_repeated"] > 0
        assert row["memory"]["host_planned_bytes"] > 0
        assert row["memory"]["device_planned_bytes"] >= 0
        if counts_memory():
            assert row["memory"]["device_extra_bytes"] >= 0
        else:
            assert "device_extra_bytes" not in row["memory"]
            assert any("Allocator stats not available" in why for why in row["memory"]["unmeasured"])
        assert sum(row["report"]["routes"].values()) == row["tensors"]
        assert row["report"]["repeated_seconds"]["execute"] > 0
    assert ways["direct"]["report"]["routes"].keys() == {"direct"}
    assert data["machine"]["card"]["name"] == "Simulated"
    assert data["machine"]["card"]["compute_capability"] == "1.2"


def test_a_case_is_loaded_where_memory_is_not_counted(driver, small, uncounted, tmp_path):
    data = run(tmp_path, "T")
    assert not errors_in(data)
    found = next(row["memory"] for row in data["loads"] if row["way"] == "direct")
    assert "device_extra_bytes" not in found
    assert found["unmeasured"] == [
        f"ValueError: Allocator stats not available for device '{find_card(DEVICES[0]).short}'"
    ]
    assert found["device_planned_bytes"] > 0


def test_knobs_are_turned_one_at_a_time(driver, small, tmp_path):
    data = run(tmp_path, "sweep")
    assert not errors_in(data)
    assert [row["options"] for row in data["sweep"]] == [{"threads": 2}, {"fused_bytes": 0}]
    for row in data["sweep"]:
        assert row["load_gbps"] > 0
        assert row["repeated_share_of_pinned"] > 0
        assert len(row["runs"]["load"]) == len(row["runs"]["repeated"]) == 2


def test_files_of_large_models_hold_other_values_everywhere(tmp_path):
    large = device_models.large_kernels(width=64, inner=96, vocabulary=1000, blocks=1)
    tiny = device_models.large_kernels(width=8, inner=8, vocabulary=8, blocks=1)
    path = tmp_path / "X.weights.h5"
    device_models.save_like(tiny, large, path)
    large.load_weights(path)
    assert len({weight.numpy()[0, 0] for weight in large.weights}) == len(large.weights)


def test_a_way_that_fails_is_named_and_the_others_go_on(driver, small, tmp_path, monkeypatch):
    real = fastassign.load_weights

    def broken(model, path, *, options):
        report = real(model, path, options=options)
        if options.device.route == "eager":
            model.weights[-1].assign_add(tf.ones_like(model.weights[-1]._value))
        if options.device.route == "direct":
            raise RuntimeError("lost")
        return report

    monkeypatch.setattr(fastassign, "load_weights", broken)
    lines = []
    data = run(tmp_path, "T", tell=lines.append)
    failed = {row["way"]: row["error"] for row in data["loads"] if "error" in row}
    assert failed.keys() == {"direct", "eager"}
    assert "differs from what stock Keras loads" in failed["eager"]
    assert failed["direct"] == "RuntimeError: lost"
    assert any("FAILED" in line for line in lines)
    assert next(row for row in data["loads"] if row["way"] == "auto")["load"] > 0


def test_a_limit_that_fails_is_named_and_the_others_go_on(monkeypatch, tmp_path):
    with simulated_card(monkeypatch, lockable_bytes=0):
        data = run(tmp_path, "limits")
    found = {(row["limit"], row["how"]): row for row in data["limits"]}
    assert "NotPageLocked" in found["pinned", "0.0625 MiB"]["error"]
    assert found["pageable", "0.0625 MiB"]["gbps"] > 0


def test_a_case_that_fails_is_named_and_what_was_found_is_kept(driver, small, tmp_path, monkeypatch):
    def build():
        raise RuntimeError("no such op")

    monkeypatch.setitem(device_models.CASES, "G", dataclasses.replace(device_models.CASES["G"], build=build))
    saved = []
    data = run(tmp_path, "G", "T", save=lambda result: saved.append(json.dumps(result.to_dict())))
    assert data["failed"] == [{"case": "G", "error": "RuntimeError: no such op"}]
    assert {row["case"] for row in data["loads"]} == {"T"}
    assert json.loads(saved[0])["failed"]
    assert len(saved) == 2


def test_what_is_left_out_without_being_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(device_models, "available_bytes", lambda: 1 << 30)
    assert not device_models.CASES["X"].fits(tmp_path)
    assert device_models.CASES["G"].fits(tmp_path)
    monkeypatch.undo()
    assert device_models.available_bytes() > 0


def test_an_unknown_case_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown case 'R'; with --device there are limits, costs, G, H, T, X, sweep"):
        device_suite.run_device_suite(tmp_path, device="gpu", cases=["R"])


def test_a_machine_without_a_card_is_told(tmp_path, monkeypatch):
    with pytest.raises(Unsupported, match=r"TensorFlow sees no gpu:3: .*"):
        find_card("gpu:3")
    result = CliRunner().invoke(app, ["bench", "--device", "gpu"])
    assert isinstance(result.exception, Unsupported)
    result = CliRunner().invoke(app, ["bench", "--device", "tpu"])
    assert result.exit_code == 2
    result = CliRunner().invoke(app, ["bench", "--device", "gpu", "--case", "R"])
    assert result.exit_code == 2
    assert "'R' is not one of limits" in result.output


def test_the_command_writes_what_it_found(driver, small, tmp_path, monkeypatch):
    listed = tf.config.list_logical_devices
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind=None: [SimpleNamespace(name=DEVICES[0])] if kind else listed()
    )
    out = tmp_path / "out.json"
    arguments = ["bench", "--device", "gpu", "--case", "T", "--repeats", "1", "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["loads"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_tables_print_errors_as_they_are(capsys):
    show_table("[/t]", ("way",), [("failed: [/job:localhost] [Op:Cast] :x:",)])
    assert "failed: [/job:localhost] [Op:Cast] :x:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("visible", "built", "missing", "text"),
    [
        (None, False, (), "built without CUDA"),
        ("-1", True, (), "CUDA_VISIBLE_DEVICES is '-1'"),
        ("", True, (), "CUDA_VISIBLE_DEVICES is ''"),
        (None, True, ("libcuda.so.1",), "libcuda.so.1 can't be opened"),
        ("0", True, ("libnvidia-ml.so.1",), "libnvidia-ml.so.1 can't be opened"),
        ("0", True, (), "TF_CPP_MIN_LOG_LEVEL=0"),
    ],
)
def test_why_tensorflow_sees_no_card(monkeypatch, visible, built, missing, text):
    if tf.config.list_logical_devices("GPU"):
        pytest.skip("it sees one")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: built)
    monkeypatch.setattr(cards, "unopened", lambda name: "not here" if name in missing else "")
    assert text in cards.why_unseen()


def test_what_a_driver_does_not_tell_is_missing(driver, monkeypatch):
    def refuse(self, name, *arguments):
        raise RuntimeError(f"no {name}")

    monkeypatch.setattr(type(driver), "call", refuse)
    found = cards.describe(find_card(DEVICES[0]))
    assert "name" not in found
    assert any("by_driver: RuntimeError" in line for line in found["unknown"])


def test_memory_that_can_not_be_measured_is_missing():
    found = with_peaks("GPU:99", lambda: None)
    assert "device_extra_bytes" not in found
    assert found["unmeasured"]


@pytest.mark.processor
def test_every_question_is_answered(driver):
    saved, lines = [], []
    scale = questions.Scale(nbytes=1 << 20, variables=10, side=16, repeats=2, total_bytes=1 << 22)
    found = questions.ask(find_card(DEVICES[0]), scale=scale, tell=lines.append, save=saved.append)
    assert not errors_in(found)
    assert [row["name"] for row in found] == [question.__name__ for question in questions.QUESTIONS]
    assert all(row["finding"] and row["figures"] for row in found)
    not_measured = [row["name"] for row in found if row["finding"].startswith("not measured: ")]
    assert not_measured == ([] if counts_memory() else ["accounting"])
    assert len(saved) == len(found)
    by_name = {row["name"]: row["figures"] for row in json.loads(json.dumps(found))}
    assert by_name["casts"]["kernel, bfloat16"]["differ"] == 0
    assert by_name["casts"]["kernel, float16"]["differ"] == 0
    assert by_name["coexistence"]["kernel"] == [True, True]
    assert by_name["recycling"]["wrong"] == 0
    assert None not in by_name["aliases"]["offsets"]["SplitV"]
    assert by_name["placement"]["dtypes"]["float32"]["variable"] == DEVICES[0]


def test_a_question_of_memory_that_is_not_counted(driver, uncounted):
    answer = memory.accounting(find_card(DEVICES[0]), questions.Scale(nbytes=1 << 20))
    assert answer.finding.startswith("not measured: Allocator stats not available")
    assert answer.figures["free_by_the_driver"] > 0


def test_questions_are_a_command(driver, tmp_path, capsys):
    out = tmp_path / "out.json"
    questions.main(["--device", DEVICES[0], "--only", "addresses", "--only", "aliases", "--json", str(out)])
    data = json.loads(out.read_text())
    assert [row["name"] for row in data["questions"]] == ["addresses", "aliases"]
    assert data["machine"]["card"]["name"] == "Simulated"
    assert "SplitV aliases" in capsys.readouterr().out


def test_questions_without_a_card_are_not_asked(capsys):
    with pytest.raises(SystemExit):
        questions.main(["--device", "gpu:3"])
    assert capsys.readouterr().err.startswith("TensorFlow sees no gpu:3: ")


def test_a_question_that_fails_does_not_stop_the_next(driver, monkeypatch):
    def lost(card, scale):
        """Is it there?"""
        raise NotPageLocked("no")

    monkeypatch.setattr(questions, "QUESTIONS", (lost, questions.addresses))
    first, second = questions.ask(find_card(DEVICES[0]), scale=questions.Scale(nbytes=1 << 20))
    assert first["error"] == "NotPageLocked: no"
    assert second["finding"]


def test_steps_tell_of_themselves():
    lines = []
    steps = Steps(lines.append)
    assert steps.run("good", lambda: {"seconds": 1.0}) == {"seconds": 1.0}
    assert steps.run("bad", lambda: {"seconds": 1 / 0})["error"].startswith("ZeroDivisionError")
    assert "good" in lines[0]
    assert any("bad FAILED: ZeroDivisionError" in line for line in lines)


def test_the_host_is_no_card(driver):
    assert not driver.serves(HOST)
