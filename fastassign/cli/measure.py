"""``fastassign bench``, ``doctor`` and ``demo``."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import fastassign
from fastassign.cli.output import quiet_tensorflow, say, show_table
from fastassign.targets.discover import check_tensorflow
from fastassign.text import fields


def bench(
    case: Annotated[
        list[str] | None,
        typer.Option(help="A case to measure, of those above. Repeatable. Without it all but sweep."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs behind each median.")] = 5,
    folder: Annotated[
        Path | None,
        typer.Option(help="A folder for the model files, which are removed (2 to 3 GB; X takes 9 GB more)."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    device: Annotated[
        str, typer.Option(help="The device of the variables: cpu, gpu (the first one), gpu:1, ...")
    ] = "cpu",
) -> None:
    """Measure stock Keras, fastassign and the limits of this machine, interleaved in one process.

    Files are read from the page cache. Seconds are medians; on a noisy machine only the ratios are reliable.

    G: GPT-like, 638 MB in 195 tensors
    R: ResNet152, 242 MB in 932 tensors
    T: 5,000 tiny tensors
    graph: variables of a TensorFlow 1 session
    swap: repeated loads by a Loader
    serve: a model that is called while its weights are swapped
    whole: load_model

    With --device gpu, each file is loaded by stock and by every route, checked bit for bit, with peak memory:

    limits: the rates of the way to the card
    costs: the seconds of single steps
    G: the same
    H: the same file into bfloat16 variables
    T: 5,000 variables of 4 KB
    X: 8.6 GB in 71 tensors; only if asked for where disk or memory is short
    sweep: G with one option changed at a time; only if asked for
    """
    if not re.fullmatch(r"cpu|gpu(:\d+)?", device):
        raise typer.BadParameter(f"{device!r} is not cpu, gpu or gpu:NUMBER", param_hint="--device")
    quiet_tensorflow()
    check_tensorflow()
    from fastassign.benchmarks.device.copies import CopySizes
    from fastassign.benchmarks.device.suite import MEASUREMENTS, run_device_suite
    from fastassign.benchmarks.suite import CASES, run_suite

    known = list(CASES if device == "cpu" else MEASUREMENTS)
    for name in case or ():
        if name not in known:
            text = f"{name!r} is not one of {', '.join(known)} (the cases of --device {device})"
            raise typer.BadParameter(text, param_hint="--case")

    def save(result: Any) -> None:
        if out is not None:
            out.write_text(json.dumps(result.to_dict(), indent=1, default=str) + "\n")

    with tempfile.TemporaryDirectory(dir=folder, prefix="fastassign-bench-") as place:
        if device == "cpu":
            result = run_suite(Path(place), cases=case or known, repeats=repeats, tell=say)
        else:
            # The figures are saved after each step: a failing card can end the process.
            result = run_device_suite(
                Path(place), device=device, cases=case or (), sizes=CopySizes(repeats=repeats), tell=say, save=save
            )
    for each in result.tables:
        show_table(each.title, each.head, each.rows, note=each.note)
        print()
    save(result)


def doctor() -> None:
    """Show versions, devices, the rates of page cache and storage, the index cache, and the way to a GPU."""
    quiet_tensorflow()
    from fastassign.doctor import checks

    for name, finding in checks():
        print(fields([(f"{name + ':':14}", [finding])]))


def demo() -> None:
    """Build a model, save it with stock Keras, load it with stock and with fastassign, compare, and time both."""
    quiet_tensorflow()
    check_tensorflow()
    from fastassign.benchmarks.cases.compare import HEAD, about_limits, compare
    from fastassign.benchmarks.cases.models import demo_model

    say("building a GPT-like model with Keras")
    model = demo_model()
    with tempfile.TemporaryDirectory(prefix="fastassign-demo-") as place:
        comparisons = []
        path = Path(place)
        for name in ("demo.weights.h5", "demo.h5"):
            path = Path(place) / name
            say(f"saving {name} with Keras")
            (model.save_weights if name.endswith(".weights.h5") else model.save)(path)
            comparisons.append(compare(name, model, path, repeats=3, tell=say))
        report = fastassign.load_weights(model, path)
    report = dataclasses.replace(report, limit_gbps=report.nbytes / comparisons[-1].warm_limit / 1e9)
    say("every variable is equal, bit for bit, to the one that Keras loads")
    title = f"{comparisons[0].size}: seconds to load, page cache warm (medians of 3)"
    show_table(title, HEAD, [each.row for each in comparisons], note=about_limits(comparisons))
    print(f"\nOne more load, of {report}")
