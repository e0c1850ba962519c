"""``fastassign inspect`` and ``fastassign plan``."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import fastassign
from fastassign.catalog.file import WeightFile
from fastassign.cli.models import model_of
from fastassign.cli.output import explain, quiet_tensorflow, show_table
from fastassign.errors import Mismatch
from fastassign.matching.selection import leading_parts
from fastassign.targets.discover import check_tensorflow
from fastassign.text import printable

FileArgument = Annotated[Path, typer.Argument(help="A .weights.h5, .h5, .hdf5 or .keras file.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def inspect(
    file: FileArgument,
    include: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="List only tensors below paths that match. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave these tensors out. Repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the tensors of a weight file: shapes, dtypes, and how they are stored. Needs no TensorFlow."""
    catalog = fastassign.inspect(file)
    records = list(catalog.contents.records.values())
    for label, patterns, wanted in (("include", include, True), ("exclude", exclude, False)):
        found = {pattern: {r.key for r in records if _matches(pattern, r.key)} for pattern in patterns or ()}
        for pattern, keys in found.items():
            if not keys:
                raise typer.BadParameter(f"{pattern!r} matches no tensor of {file}", param_hint=f"--{label}")
        if found:
            keys = set().union(*found.values())
            records = [record for record in records if (record.key in keys) is wanted]
    shown = {record.key for record in records}
    nbytes = sum(record.nbytes for record in records)
    if as_json:
        data = catalog.to_dict()
        data["tensors"] = [tensor for tensor in data["tensors"] if tensor["key"] in shown]
        print(json.dumps({**data, "bytes": nbytes}, indent=1))
        return
    rows = [(r.key, str(r.shape), r.dtype, f"{r.nbytes:,}", r.detail or "contiguous") for r in records]
    of_all = f" of {len(catalog)}" if len(records) < len(catalog) else ""
    title = f"{catalog.path}: {catalog.format} format, {len(records)}{of_all} tensors, {nbytes:,} bytes"
    show_table(title, ("tensor", "shape", "dtype", "bytes", "stored"), rows, right=(3,), names=(0,))
    for refusal in catalog.contents.refusals.values():
        print(printable(f"refused: {refusal.message} (rule {refusal.rule})"))


def plan(
    file: FileArgument,
    model: Annotated[
        str,
        typer.Option(
            help="The model: a .keras or whole-model .h5 file, or module:function for a function that returns it.",
            show_default=False,
        ),
    ],
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="A path in the file (or its beginning) and its name in the model; either may be empty. Repeatable.",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Load only layers and variables that match this pattern. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave layers and variables that match as they are. Repeatable."),
    ] = None,
    reshape: Annotated[bool, typer.Option("--reshape", help="Reshape arrays of the right size.")] = False,
    by_name: Annotated[bool, typer.Option("--by-name", help="Match the layers of a legacy file by name.")] = False,
    skip_mismatch: Annotated[
        bool, typer.Option("--skip-mismatch", help="Leave variables of another shape as they are.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a load would do, without doing it; exit code 1 if file and model do not fit together.

    The options are those of load_weights and LoadOptions.
    """
    options = fastassign.LoadOptions(
        rename=_renames(rename or ()) or None,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        reshape=reshape,
    )
    quiet_tensorflow()
    check_tensorflow()
    if file.suffix in {".h5", ".hdf5", ".keras"}:
        WeightFile(file).close()  # a wrong path is told before the model is built
    built = model_of(model)
    try:
        made = fastassign.plan(built, file, by_name=by_name, skip_mismatch=skip_mismatch, options=options)
    except Mismatch as error:
        if as_json:
            found: dict[str, Any] = {"file": str(file), "mismatch": str(error), "hint": error.hint}
            if error.diff is not None:
                found["diff"] = [row._asdict() for row in error.diff.rows]
            print(json.dumps(found, indent=1))
        explain(error)
        raise typer.Exit(1) from error
    print(json.dumps(made.to_dict(), indent=1) if as_json else made)


def _matches(pattern: str, key: str) -> bool:
    return any(fnmatch.fnmatchcase(leading, pattern.strip("/")) for leading in leading_parts(key))


def _renames(given: Sequence[str]) -> dict[str, str | None]:
    renames: dict[str, str | None] = {}
    for text in given:
        old, equals, new = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not OLD=NEW", param_hint="--rename")
        if old in renames and renames[old] != new:
            raise typer.BadParameter(f"{old!r} gets two names, {renames[old]!r} and {new!r}", param_hint="--rename")
        renames[old] = new
    return renames
