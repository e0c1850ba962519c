"""The command line: one command for each verb."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import fastassign
from fastassign.errors import FastAssignError, Mismatch
from fastassign.program import Program
from fastassign.targets.discover import check_tensorflow

app = typer.Typer(
    help="Loads Keras weight files (HDF5) into TensorFlow variables at the speed of the hardware.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FileArgument = Annotated[Path, typer.Argument(help="A .weights.h5, .h5, .hdf5 or .keras file.", show_default=False)]


@app.command()
def inspect(
    file: FileArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the tensors of a weight file: shapes, dtypes, and how they are stored. Needs no TensorFlow."""
    catalog = fastassign.inspect(file)
    if as_json:
        print(json.dumps(catalog.to_dict(), indent=1))
        return
    rows = [
        (record.key, str(record.shape), record.dtype, f"{record.nbytes:,}", record.detail or "contiguous")
        for record in catalog.contents.records.values()
    ]
    title = f"{catalog.path}: {catalog.format} format, {len(catalog)} tensors, {catalog.nbytes:,} bytes"
    _table(title, ("tensor", "shape", "dtype", "bytes", "stored"), rows, right={3})
    for refusal in catalog.contents.refusals.values():
        print(f"refused: {refusal.message} (rule {refusal.rule})")


@app.command()
def plan(
    file: FileArgument,
    model: Annotated[
        str,
        typer.Option(help="MODEL.keras, or module:function for a function that returns the model.", show_default=False),
    ],
    by_name: Annotated[bool, typer.Option(help="Match the layers of a legacy file by name.")] = False,
    skip_mismatch: Annotated[bool, typer.Option(help="Leave variables of another shape as they are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what a load would do, without doing it; exit code 1 if file and model do not fit together."""
    _quiet_tensorflow()
    try:
        made = fastassign.plan(_model(model), file, by_name=by_name, skip_mismatch=skip_mismatch)
    except Mismatch as error:
        if as_json:
            found: dict[str, Any] = {"file": str(file), "mismatch": str(error), "hint": error.hint}
            if error.diff is not None:
                found["diff"] = [row._asdict() for row in error.diff.rows]
            print(json.dumps(found, indent=1))
        _explain(error)
        raise typer.Exit(1) from error
    print(json.dumps(made.to_dict(), indent=1) if as_json else made)


@app.command()
def bench(
    case: Annotated[
        list[str] | None,
        typer.Option(help="What to measure, of the cases above. May be repeated. All but sweep if left out."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs behind each median.")] = 5,
    folder: Annotated[
        Path | None, typer.Option(help="Where the model files are made, and removed (2 to 3 GB; X takes 9 GB more).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    device: Annotated[
        str, typer.Option(help="Where the variables stand: cpu, gpu (the first one), gpu:1, ...")
    ] = "cpu",
) -> None:
    """Measure stock Keras, fastassign and the limits of this machine, interleaved in one process.

    Files are read from the page cache. Seconds are medians; on a noisy machine only the ratios mean anything.

    G: GPT-like, 638 MB in 195 tensors
    R: ResNet152, 242 MB in 932 tensors
    T: 5,000 tiny tensors
    graph: variables of a TensorFlow 1 session
    swap: repeated loads by a Loader
    serve: a model that is called meanwhile
    whole: load_model

    With --device gpu, by stock and by every route, checked bit for bit first, with the peaks of memory:

    limits: what the way to the card carries
    costs: what single steps take
    G: the same
    H: the same file into bfloat16 variables
    T: 5,000 variables of 4 KB
    X: 8.6 GB in 71 tensors; left out, unless asked for, where disk or memory is short
    sweep: G with one knob turned at a time; only where asked for
    """
    if not re.fullmatch(r"cpu|gpu(:\d+)?", device):
        raise typer.BadParameter(f"{device!r} is neither cpu nor gpu nor gpu:NUMBER", param_hint="--device")
    _quiet_tensorflow()
    check_tensorflow()
    from fastassign.benchmarks.device.suite import PARTS, run_device_suite
    from fastassign.benchmarks.suite import CASES, run_suite

    known = list(CASES if device == "cpu" else PARTS)
    for name in case or ():
        if name not in known:
            text = f"{name!r} is none of {', '.join(known)} (those of --device {device})"
            raise typer.BadParameter(text, param_hint="--case")

    def save(result: Any) -> None:
        if out is not None:
            out.write_text(json.dumps(result.to_dict(), indent=1, default=str) + "\n")

    with tempfile.TemporaryDirectory(dir=folder, prefix="fastassign-bench-") as place:
        if device == "cpu":
            result = run_suite(Path(place), cases=case or known, repeats=repeats, tell=_say)
        else:
            # What was found is kept at each step: a card can take the process with it.
            result = run_device_suite(
                Path(place), device=device, cases=case or (), repeats=repeats, tell=_say, save=save
            )
    for table in result.tables:
        _table(table.title, table.head, table.rows, right=set())
    save(result)


@app.command()
def doctor() -> None:
    """Show versions, devices, the rates of page cache and storage, the index cache, and the way to a GPU."""
    _quiet_tensorflow()
    from fastassign.doctor import checks

    for name, finding in checks():
        print(f"{name + ':':16}{finding}")


@app.command()
def demo() -> None:
    """Build a model, save it with stock Keras, load it with stock and with fastassign, compare, and time both."""
    _quiet_tensorflow()
    check_tensorflow()
    from fastassign.benchmarks.cases.compare import HEAD, compare
    from fastassign.benchmarks.cases.models import demo_model

    _say("building a GPT-like model with Keras")
    model = demo_model()
    with tempfile.TemporaryDirectory(prefix="fastassign-demo-") as place:
        comparisons = []
        path = Path(place)
        for name in ("demo.weights.h5", "demo.h5"):
            path = Path(place) / name
            _say(f"saving {name} with Keras")
            (model.save_weights if name.endswith(".weights.h5") else model.save)(path)
            comparisons.append(compare(name, model, path, repeats=3, tell=_say))
        report = fastassign.load_weights(model, path)
    report = dataclasses.replace(report, limit_gbps=report.nbytes / comparisons[-1].fresh_limit / 1e9)
    _say("every variable is equal, bit for bit, to what Keras loads")
    _table("Seconds to load, page cache warm (medians of 3)", HEAD, [c.row for c in comparisons], right=set())
    print(report)


class _Launch(BaseException):
    """Leaves the command line behind, before a program runs."""

    def __init__(self, program: Program) -> None:
        self.program = program


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    program: Annotated[
        list[str], typer.Argument(help="SCRIPT.py, or with -m a module; then its arguments.", show_default=False)
    ],
    as_module: Annotated[bool, typer.Option("-m", help="Run a module, as python -m does.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell of each call who did it.")] = False,
) -> None:
    """Run an unchanged Python program whose load_weights and load_model go through fastassign.

    Options of this command come before the program, the program's own after it.
    """
    name, *arguments = program
    if not as_module and not Path(name).is_file():
        raise typer.BadParameter(f"there is no script {name!r}", param_hint="PROGRAM")
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("fastassign: %(message)s"))
        logger = logging.getLogger("fastassign")
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    raise _Launch(Program(name, tuple(arguments), as_module))


def main() -> None:
    """Run the command line; errors of ours are printed without a traceback, with what to do next."""
    try:
        app()
        return
    except FastAssignError as error:
        _explain(error)
        sys.exit(1)
    except _Launch as launch:
        program = launch.program
    # Out here neither typer nor our printing of errors comes between the program and Python.
    sys.excepthook = sys.__excepthook__
    fastassign.install()
    program.run()


def _explain(error: FastAssignError) -> None:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(textwrap.indent(note, "  "), file=sys.stderr)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _quiet_tensorflow() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _model(source: str) -> Any:
    check_tensorflow()
    if source.endswith(".keras"):
        import keras

        return keras.saving.load_model(source, compile=False)
    module, _, function = source.partition(":")
    if not function:
        raise typer.BadParameter(f"{source!r} is neither a .keras file nor module:function", param_hint="--model")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise typer.BadParameter(f"{source!r} can't be imported: {error}", param_hint="--model") from error


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, right: set[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for position, name in enumerate(head):
        table.add_column(name, justify="right" if position in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Where nobody looks at a terminal, a table is as wide as it needs to be.
    width = None if sys.stdout.isatty() else 160
    # Plain text: names and errors may hold what rich takes for markup.
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)
