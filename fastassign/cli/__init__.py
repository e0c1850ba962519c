"""The command line: one command for each verb."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import fastassign
from fastassign.cli.files import inspect, plan
from fastassign.cli.measure import bench, demo, doctor
from fastassign.cli.output import explain
from fastassign.cli.programs import Launch, run
from fastassign.errors import FastAssignError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        print(f"fastassign {fastassign.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Load Keras weight files (HDF5) into TensorFlow variables at the speed of the hardware."""


for command in (inspect, plan, bench, doctor, demo):
    app.command()(command)
# Options behind the program are the program's own.
app.command(context_settings={"allow_interspersed_args": False})(run)


def main() -> None:
    """Run the command line; our own errors are printed without a traceback, with a hint."""
    try:
        app()
        return
    except FastAssignError as error:
        explain(error)
        sys.exit(1)
    except Launch as launch:
        program = launch.program
    # Out here neither typer nor our own printing of errors stands between the program and Python.
    sys.excepthook = sys.__excepthook__
    fastassign.install()
    program.run()
