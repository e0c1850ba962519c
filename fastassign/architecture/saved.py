"""A model as its file describes it, without the weights.

Legacy ``.h5`` files carry the description as JSON in attributes of the root: ``model_config``, ``keras_version`` and,
where the model was compiled, ``training_config`` (source: ``legacy_h5_format.py`` of Keras 3, ``hdf5_format.py`` of
tf_keras). ``.keras`` archives carry it in two members: ``config.json``, with the compilation inside, and
``metadata.json`` (source: ``saving_lib.py``).
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastassign.catalog.file import Identity, WeightFile
from fastassign.catalog.hdf5 import Decoder
from fastassign.catalog.indexing import is_archive
from fastassign.errors import FastAssignError, Malformed, Mismatch, Refused

# Published models stay below 10 MB; a configuration is read, parsed and copied a few times.
MAX_CONFIG_BYTES = 256 << 20

_CONFIG, _METADATA = "config.json", "metadata.json"


# An object of a configuration: ``class_name``, ``config`` and more.
Node = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """A model as its file describes it.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    identity : Identity
        Tells whether the file is still the same one.
    format : {"hdf5", "archive"}
        A legacy ``.h5`` file, or a ``.keras`` archive.
    config : dict
        ``class_name`` and ``config`` of the model, and for an archive the further keys of Keras 3.
    training : dict or None
        How a model in a legacy file was compiled; ``None`` where it was not.
    keras_version : str
        The version of Keras that saved it; empty where the file does not say.
    """

    path: Path
    identity: Identity
    format: Literal["hdf5", "archive"]
    config: dict[str, Any]
    training: dict[str, Any] | None
    keras_version: str


def read_saved(path: str | os.PathLike[str]) -> SavedModel:
    """Read the description of the model in a file.

    Raises
    ------
    NotFound, Denied, NotAFile, Malformed, Truncated
        The file can't be read, or its configuration is not JSON or not that of a model.
    Refused
        The configuration is larger than any real one.
    """
    with WeightFile(path) as file:
        try:
            saved = _from_archive(file) if is_archive(file) else _from_hdf5(file)
            file.check_unchanged()
        except FastAssignError as error:
            error.at(file.path)
            raise
    return saved


def _from_hdf5(file: WeightFile) -> SavedModel:
    with Decoder(file, base=0, size=file.size) as attributes:
        found = {name: attributes.root_text(name) for name in ("model_config", "training_config", "keras_version")}
    texts = {name: text for name, text in found.items() if text is not None}
    if "model_config" not in texts:
        raise Mismatch(
            f"No model config found in the file at {file.path}.",
            file=file.path,
            hint="the file holds only weights: build the model in code, then call fastassign.load_weights(model, path)",
        )
    training = texts.get("training_config")
    return SavedModel(
        path=file.path,
        identity=file.identity,
        format="hdf5",
        config=_model(_parse(texts["model_config"], "model_config"), "model_config"),
        training=None if training is None else _object(_parse(training, "training_config"), "training_config"),
        keras_version=texts.get("keras_version", ""),
    )


def _from_archive(file: WeightFile) -> SavedModel:
    try:
        with os.fdopen(os.dup(file.descriptor), "rb") as outer, zipfile.ZipFile(outer) as archive:
            texts = {name: _member(archive, name) for name in (_CONFIG, _METADATA) if name in archive.namelist()}
    except FastAssignError:
        raise
    except Exception as error:  # zipfile passes on any exception of its codecs
        raise Malformed(str(error), hint="a .keras file is a zip archive; this one is damaged") from error
    if _CONFIG not in texts:
        raise Malformed(f"There is no item named {_CONFIG!r} in the archive", hint="this is not a model saved by Keras")
    metadata = _parse(texts.get(_METADATA, "{}"), _METADATA)
    version = metadata.get("keras_version", "") if isinstance(metadata, dict) else ""
    config = _model(_parse(texts[_CONFIG], _CONFIG), _CONFIG)
    return SavedModel(
        path=file.path,
        identity=file.identity,
        format="archive",
        config=config,
        training=None,
        keras_version=str(version),
    )


def _member(archive: zipfile.ZipFile, name: str) -> str:
    size = archive.getinfo(name).file_size
    _check_size(size, name)
    with archive.open(name) as member:
        return member.read(size + 1).decode()


def _check_size(size: int, name: str) -> None:
    if size > MAX_CONFIG_BYTES:
        raise Refused(f"{name} has {size} bytes, more than the {MAX_CONFIG_BYTES} allowed", rule="config-size")


def _parse(text: str, name: str) -> Any:
    _check_size(len(text), name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{name} is not valid JSON: {error}", hint="the file is damaged") from error


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{name} must be a JSON object, not a {type(value).__name__}")
    return value


def _model(value: Any, name: str) -> dict[str, Any]:
    found = _object(value, name)
    if not isinstance(found.get("class_name"), str) or not isinstance(found.get("config"), (dict, list)):
        raise Malformed(f"{name} is not the configuration of a model: it has no class_name, or no config")
    check_acyclic(found)
    return found


def nodes(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a configuration that names a class, outer ones first."""
    stack = [config]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(value.get("class_name"), str) and "config" in value:
                yield value
            stack.extend(reversed(value.values()))
        elif isinstance(value, list):
            stack.extend(reversed(value))


def own_config(node: Node) -> dict[str, Any]:
    """Return the arguments of an object; empty where it has none by name."""
    config = node["config"]
    return config if isinstance(config, dict) else {}


def layer_name(node: Node) -> str:
    """Return the name of a layer, or of its class."""
    return str(own_config(node).get("name", node["class_name"]))


def layers_of(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the configurations of the layers of a model; empty if the object is not a model."""
    config = node.get("config")
    found = config if isinstance(config, list) else config.get("layers") if isinstance(config, dict) else None
    return [layer for layer in found if isinstance(layer, dict)] if isinstance(found, list) else []


def check_acyclic(config: dict[str, Any]) -> None:
    """Raise an error if layers of a model wait for each other, which would keep Keras busy for ever.

    Raises
    ------
    Malformed
        The layers form a circle.
    """
    for node in nodes(config):
        layers = {str(layer.get("name")): layer for layer in layers_of(node) if "inbound_nodes" in layer}
        waits = {name: _sources(layer["inbound_nodes"], layers.keys()) for name, layer in layers.items()}
        # A layer that is called twice may feed another and be fed by it: only its first call has to come first.
        done: set[str] = set()
        while waits:
            ready = set()
            for name, calls in waits.items():  # in nearly every file the order is such that one pass is enough
                if not calls or calls[0] <= done:
                    done.add(name)
                    ready.add(name)
            if not ready:
                raise Malformed(f"layers of a {node['class_name']} take inputs from each other: {sorted(waits)[:5]}")
            waits = {name: calls for name, calls in waits.items() if name not in ready}


def _sources(inbound: Any, known: Any) -> list[set[str]]:
    """Return the layers that each call of a layer takes its inputs from."""
    calls = []
    for call in inbound if isinstance(inbound, list) else []:
        names: set[str] = set()
        stack = [call]
        while stack:
            value = stack.pop()
            if isinstance(value, dict):
                # Keras 3: {"class_name": "__keras_tensor__", "config": {"keras_history": [name, node, tensor]}}.
                history = value.get("keras_history")
                stack.extend([history] if isinstance(history, list) else value.values())
            elif isinstance(value, list):
                if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
                    names.update({value[0]} & set(known))
                stack.extend(item for item in value if isinstance(item, (dict, list)))
        calls.append(names)
    return calls
