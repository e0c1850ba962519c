"""One load of a legacy file, as its matchers see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastassign.catalog.catalog import Catalog
from fastassign.catalog.keras_legacy import LegacyContents, SavedLayer
from fastassign.catalog.records import TensorRecord
from fastassign.errors import Malformed, Mismatch
from fastassign.matching.builder import MatchingBuilder
from fastassign.matching.conversions.converter import Converter, Value
from fastassign.options import LoadOptions
from fastassign.targets.target import ModelTargets, Target


@dataclass(frozen=True, slots=True, eq=False)
class LegacyContext:
    """Both sides of a load, the options, and the matching that is being made.

    Attributes
    ----------
    model : ModelTargets
        The model.
    catalog : Catalog
        The file.
    saved : LegacyContents
        The layers and weights that the file lists.
    options : LoadOptions
        The options.
    skip_mismatch : bool
        Whether layers that do not fit are left as they are, with stock's warning.
    converter : Converter
        Brings weights of older layouts into those of the model.
    builder : MatchingBuilder
        Gets every assignment, warning and note.
    """

    model: ModelTargets
    catalog: Catalog
    saved: LegacyContents
    options: LoadOptions
    skip_mismatch: bool
    converter: Converter
    builder: MatchingBuilder

    @classmethod
    def of(
        cls, model: ModelTargets, catalog: Catalog, saved: LegacyContents, options: LoadOptions, *, skip_mismatch: bool
    ) -> LegacyContext:
        """Return the context of a load of which nothing is matched yet."""
        builder = MatchingBuilder(model.library, "legacy")
        return cls(model, catalog, saved, options, skip_mismatch, Converter(model, saved, options), builder)

    def records(self, stored: SavedLayer) -> list[TensorRecord]:
        """Return the records of a saved layer, in its order.

        Raises
        ------
        Malformed
            The file lists a weight that it does not have.
        """
        records = []
        for name, key in stored.weights:
            record = self.catalog.find(key)
            if record is None:
                raise Malformed(
                    f"the file lists the weight {name!r} of layer {stored.name!r}, but has no dataset of that name",
                    file=self.catalog.path,
                    tensor=key,
                    hint="the file is damaged: save it again",
                )
            records.append(record)
        return records

    def match_weights(self, place: str, targets: Sequence[Target], values: Sequence[Value]) -> None:
        """Pair values and variables of one layer by position, checking shapes as the library does.

        Parameters
        ----------
        place : str
            The layer, in stock's words.
        targets, values : sequence
            Equally long.

        Raises
        ------
        Mismatch
            Two shapes do not agree; the text is stock's.
        """
        for target, value in zip(targets, values, strict=True):
            if value.shape == target.shape:
                self.builder.assign(value, target)
                continue
            if self.model.library == "tf_keras":
                text = self.model.shape_error(target, value.shape)
                raise Mismatch(text, tensor=value.key, variable=target.name)
            detail = (
                f"weight {target.name}. "
                f"Weight expects shape {target.shape}. Received saved weight with shape {value.shape}"
            )
            if not self.skip_mismatch:
                raise Mismatch(f"Shape mismatch in {place}for {detail}", tensor=value.key, variable=target.name)
            self.builder.warn(f"Skipping loading weights for {place}due to mismatch in shape for {detail}")
            self.skip_shape(target, value)

    def skip_shape(self, target: Target, value: Value) -> None:
        """Note a variable that gets no value because the shapes do not agree."""
        self.builder.skip(f"{target.name}: shape {target.shape}, saved {value.shape} ({value.key})")
