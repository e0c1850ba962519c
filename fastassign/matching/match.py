"""Matching a file and a model: the rules that apply are chosen as the library itself chooses them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import LegacyContents, is_legacy, read_legacy
from fastassign.catalog.records import TensorRecord
from fastassign.errors import FastAssignError, Mismatch, Unsupported
from fastassign.matching.assignment import Matching, Notice
from fastassign.matching.keras3.by_path import match_by_path
from fastassign.matching.legacy.by_name import match_by_name
from fastassign.matching.legacy.by_order import match_by_order
from fastassign.matching.legacy.context import LegacyContext
from fastassign.matching.legacy.selected import match_selected
from fastassign.matching.mismatch.explain import explain
from fastassign.matching.selection import Selection
from fastassign.matching.variables.by_name import match_by_key
from fastassign.options import LoadOptions
from fastassign.targets.target import Layout, ModelTargets, Target

if TYPE_CHECKING:
    from fastassign.targets.bare import BareTargets


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Request:
    """The arguments of a load that Keras' own ``load_weights`` has too."""

    by_name: bool = False
    skip_mismatch: bool = False
    objects_to_skip: tuple[Any, ...] | None = None


def choose_layout(model: ModelTargets | BareTargets, path: Path, request: Request) -> Layout:
    """Choose how a file is read, from its name and the arguments alone, before it is opened.

    Raises
    ------
    Mismatch
        The arguments do not go with this kind of file; the text is stock's.
    Unsupported
        A format that fastassign does not read.
    """
    name = str(path)
    if model.library == "tensorflow":
        if request.by_name or request.objects_to_skip is not None:
            raise Mismatch("`by_name` and `objects_to_skip` are for models with layers; variables always go by name")
        return "named"
    if model.library == "keras":
        return _choose_keras3(name, path, request)
    if name.endswith(".weights.h5") or (name.endswith(".keras") and path.is_file() and zipfile.is_zipfile(path)):
        return "keras3"
    if request.skip_mismatch and not request.by_name:
        raise Mismatch("When calling model.load_weights, skip_mismatch can only be set to True when by_name is True.")
    if not name.endswith((".h5", ".hdf5", ".keras")) and (
        path.with_name(path.name + ".index").exists() or path.is_dir()
    ):
        raise Unsupported(
            f"{path} is a TensorFlow checkpoint or SavedModel",
            file=path,
            hint="fastassign reads HDF5 weight files; load this one with model.load_weights",
        )
    return "legacy"


def _choose_keras3(name: str, path: Path, request: Request) -> Literal["legacy", "keras3"]:
    if name.endswith((".keras", ".weights.h5", ".weights.json")):
        if name.endswith(".keras") and request.objects_to_skip is not None:
            raise Mismatch(f"`objects_to_skip` only supports loading '.weights.h5' files.Received: {path}")
        if request.by_name:
            raise Mismatch(f"`by_name` only supports loading legacy '.h5' or '.hdf5' files. Received: {path}")
        if name.endswith(".weights.json"):
            raise Unsupported(
                "sharded weights are not supported yet", file=path, hint="load them with model.load_weights"
            )
        return "keras3"
    if name.endswith((".h5", ".hdf5")):
        if request.objects_to_skip is not None:
            raise Mismatch(f"`objects_to_skip` only supports loading '.weights.h5' files.Received: {path}")
        return "legacy"
    raise Mismatch(
        f"File format not supported: filepath={path}. "
        "Keras 3 only supports V3 `.keras` files, "
        "`.weights.h5` files, legacy H5 format files "
        "(`.h5` extension), or Orbax checkpoints.",
        file=path,
        hint="fastassign chooses by the name, as Keras does: rename the file",
    )


def match(
    model: ModelTargets | BareTargets,
    catalog: Catalog,
    layout: Layout,
    request: Request,
    options: LoadOptions,
) -> Matching:
    """Find the record for each variable.

    Raises
    ------
    Mismatch
        File and model do not fit together.
    Refused, Malformed
        The load needs something that the policy does not allow, or that the file lacks.
    """
    saved: LegacyContents | None = None
    selection: Selection | None = None
    try:
        selection = _select(model, options)
        if model.library == "tensorflow":
            builder = match_by_key(model, catalog, skip_mismatch=request.skip_mismatch)
            saved = read_legacy(catalog.contents) if is_legacy(catalog.contents) else None
        elif layout == "keras3":
            builder = match_by_path(
                model,
                catalog,
                skip_mismatch=request.skip_mismatch,
                objects_to_skip=request.objects_to_skip or (),
                selection=selection,
                reshape=options.reshape,
            )
            if request.by_name:
                builder.skip("by_name: tf_keras ignores it for Keras 3 files, which have no layer names")
        else:
            saved = read_legacy(catalog.contents)
            context = LegacyContext.of(model, catalog, saved, options, skip_mismatch=request.skip_mismatch)
            _match_legacy(context, selection, by_name=request.by_name)
            builder = context.builder
            builder.add_finalizers(model.finalizers())
    except FastAssignError as error:
        if isinstance(error, Mismatch) and model.library != "tensorflow":
            explain(error, model, catalog, saved, advise=selection is None or error.hint is None)
        raise error.at(catalog.path) from error.__cause__
    matching = builder.build()
    matching = replace(
        matching,
        missing=tuple(_missing(model, matching)),
        unexpected=tuple(_unexpected(catalog, matching, saved)),
    )
    if matching.assignments or matching.hooks or matching.conversions or request.skip_mismatch:
        return matching
    return _with_nothing_to_load(model, catalog, matching)


def _match_legacy(context: LegacyContext, selection: Selection | None, *, by_name: bool) -> None:
    if selection is not None:
        match_selected(context, selection, by_name=by_name)
    elif by_name:
        match_by_name(context)
    else:
        match_by_order(context)


def _with_nothing_to_load(model: ModelTargets | BareTargets, catalog: Catalog, matching: Matching) -> Matching:
    """Return a matching that assigns nothing with a warning that says so, if neither side has anything to match.

    Raises
    ------
    Mismatch
        The model has variables, or would have once it is built, and none of them would get a value.
    """
    # tf_keras loads a Keras 3 file into a model without variables and does not say so (docs/internals/keras.md, B10).
    unbuilt = not getattr(model.model, "built", True) and matching.unexpected
    if matching.missing or unbuilt:
        raise Mismatch(
            f"{catalog.path} holds nothing for this model: no variable would be assigned",
            file=catalog.path,
            hint="build the model first: call it on some data"
            if unbuilt
            else f"compare both sides with: fastassign inspect {catalog.path}",
        )
    if matching.left_out:
        raise Mismatch("include and exclude leave no variable to load", file=catalog.path)
    nothing = "the model has no weights" if matching.unexpected else "neither the model nor the file has weights"
    return replace(matching, notices=(*matching.notices, Notice(f"{catalog.path}: {nothing}")))


def _select(model: ModelTargets | BareTargets, options: LoadOptions) -> Selection | None:
    selection = Selection.of(options)
    if selection is not None and model.library == "tensorflow":
        raise Mismatch(
            "rename, include and exclude are for models with layers",
            hint="pass a mapping of the variables that you want: {name in the file: variable, ...}",
        )
    return selection


def _missing(model: ModelTargets | BareTargets, matching: Matching) -> Iterable[Target]:
    if model.library == "tensorflow":
        # Variables without a tensor are among the skipped, by their names.
        return ()
    covered = {*matching.assignments, *matching.conversions, *matching.left_out}
    for hook in matching.hooks:
        covered.update(id(variable) for variable in getattr(hook.obj, "weights", ()))
    return (target for target in model.all_targets(matching.layout) if id(target.variable) not in covered)


def _unexpected(catalog: Catalog, matching: Matching, saved: LegacyContents | None) -> Iterable[TensorRecord]:
    used = {assignment.record.key for assignment in matching.assignments.values()}
    used.update(record.key for each in matching.conversions.values() for record in each.recipe.records)
    used.update(record.key for hook in matching.hooks for record in hook.records.values())
    # A whole-model file also has the optimizer's slots, which are not weights.
    keys = catalog.contents.records if saved is None else saved.keys
    return (catalog.contents.records[key] for key in keys if key not in used and key in catalog.contents.records)
