"""``fastassign run``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from fastassign.program import Program


class Launch(BaseException):
    """Ends the command line, so that a program can run outside of it."""

    def __init__(self, program: Program) -> None:
        self.program = program


def run(
    program: Annotated[
        list[str], typer.Argument(help="SCRIPT.py, or with -m a module; then its arguments.", show_default=False)
    ],
    as_module: Annotated[bool, typer.Option("-m", help="Run a module, as python -m does.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log whether fastassign or Keras handled each call.")
    ] = False,
) -> None:
    """Run an unchanged Python program whose load_weights and load_model go through fastassign.

    Options of this command come before the program, the program's own after it.
    """
    name, *arguments = program
    if not as_module and not Path(name).is_file():
        raise typer.BadParameter(f"no such script: {name}", param_hint="PROGRAM")
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("fastassign: %(message)s"))
        logger = logging.getLogger("fastassign")
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    raise Launch(Program(name, tuple(arguments), as_module))
