"""Keras 3 files, by the path that Keras' walk takes to each object."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastassign.catalog.catalog import Catalog
from fastassign.errors import Mismatch, MissingGroup
from fastassign.matching.assignment import Failure, failure_text
from fastassign.matching.builder import MatchingBuilder
from fastassign.matching.keras3.keras_walk import KerasWalk
from fastassign.matching.keras3.objects import ObjectMatcher
from fastassign.matching.keras3.tf_keras_walk import TfKerasWalk
from fastassign.matching.keras3.walk import ObjectError
from fastassign.matching.selection import Selection
from fastassign.targets.target import ModelTargets


def match_by_path(
    model: ModelTargets,
    catalog: Catalog,
    *,
    skip_mismatch: bool,
    objects_to_skip: Iterable[Any],
    selection: Selection | None = None,
    reshape: bool = False,
) -> MatchingBuilder:
    """Match the groups of a Keras 3 weights file to the objects of a model.

    Parameters
    ----------
    model : ModelTargets
        The model.
    catalog : Catalog
        The file.
    skip_mismatch : bool
        Whether objects that do not fit are left as they are, with stock's warning.
    objects_to_skip : iterable
        Layers that keep their values.
    selection : Selection, optional
        The variables to load, and their new paths.
    reshape : bool
        Whether a dataset of the right size and another shape is reshaped.

    Raises
    ------
    Mismatch
        Objects could not be matched; the text is stock's.
    """
    builder = MatchingBuilder(model.library, "keras3")
    matcher = ObjectMatcher(model, catalog, builder, selection, reshape=reshape)
    if model.library == "keras":
        failures = KerasWalk(model, matcher, objects_to_skip).run()
    else:
        failures = _walk_tf_keras(model, catalog, matcher, skip_failures=skip_mismatch)
    builder.add_hooks(matcher.hooks)
    if selection is not None:
        selection.check()
    if failures and not skip_mismatch:
        raise Mismatch(failure_text(failures), hint=_hint(catalog))
    builder.add_failures(failures)
    return builder


def _walk_tf_keras(
    model: ModelTargets, catalog: Catalog, matcher: ObjectMatcher, *, skip_failures: bool
) -> list[Failure]:
    if not matcher.has_path("vars"):
        raise MissingGroup(
            "Unable to synchronously open object (object 'vars' doesn't exist)", file=catalog.path, hint=_hint(catalog)
        )
    try:
        return TfKerasWalk(model, matcher, skip_failures=skip_failures).run()
    except ObjectError as error:
        raise Mismatch(str(error), hint=_hint(catalog)) from error


def _hint(catalog: Catalog) -> str:
    if catalog.format == "legacy":
        return f"{catalog.path.name} has the legacy layout: give it a name that ends in .h5 but not in .weights.h5"
    return "skip_mismatch=True loads the rest and leaves these objects as they are"
