"""The verbs: what a user calls."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from fastassign.catalog.open import Catalog, open_catalog
from fastassign.collection import held_back
from fastassign.errors import Unsupported
from fastassign.matching.match import Request, choose_layout, match
from fastassign.options import LoadOptions
from fastassign.planning.plan import Plan, make_plan
from fastassign.progress import Callback
from fastassign.report import Report
from fastassign.targets.discover import discover


def load_weights(
    model: Any,
    path: str | os.PathLike[str],
    *,
    by_name: bool = False,
    skip_mismatch: bool = False,
    objects_to_skip: Iterable[Any] | None = None,
    session: Any = None,
    mode: str = "copy",
    atomic: bool = False,
    progress: bool | Callback | None = None,
    options: LoadOptions | None = None,
) -> Report:
    """Load the weights of a Keras file into a model, as ``model.load_weights`` would, and faster.

    After the call every variable holds bit for bit what Keras would have put there; where Keras is known to be
    silently wrong, the right value or an error (``docs/differences.md``). Everything that can be checked is
    checked before the first variable changes.

    Parameters
    ----------
    model : keras.Model or tf_keras.Model
        A built model: Keras 3 on the TensorFlow backend, or tf_keras.
    path : str or os.PathLike
        ``.weights.h5``, ``.keras``, or a legacy ``.h5``/``.hdf5`` file (weights or whole model). As in Keras the
        name decides how it is read.
    by_name : bool
        Legacy files: match the top-level layers by name instead of by order.
    skip_mismatch : bool
        Leave variables whose shape differs as they are, with Keras' warning, instead of raising.
    objects_to_skip : iterable of keras.Layer, optional
        Keras 3 ``.weights.h5`` files: layers that keep their values.
    session : None
        Reserved for TensorFlow 1 graphs.
    mode : {"copy"}
        How values get into variables; ``"copy"`` reads the file into memory.
    atomic : bool
        Read everything before the first variable is assigned, so that a failing disk leaves the model as it was.
        Takes host memory of the size of all weights.
    progress : bool or callable, optional
        ``True`` for a bar on a terminal, or a function that gets every ``ProgressEvent``.
    options : LoadOptions, optional
        Every other knob.

    Returns
    -------
    Report
        What was assigned, cast, skipped, missing and unexpected, and where the time went.

    Raises
    ------
    Mismatch (ValueError)
        File and model do not fit together; texts are Keras' own.
    NotFound, Denied, NotAFile, Malformed, Truncated (OSError)
        The file can't be opened, or is damaged.
    Refused (ValueError)
        The file asks for something that the policy for untrusted files does not allow.
    Budget (MemoryError)
        The load does not fit into ``options.max_staging_bytes``.
    Truncated, ReadFailed, Changed (OSError)
        While reading: the error's ``assigned`` names the variables that have new values already.

    Examples
    --------
    >>> import fastassign as fa
    >>> report = fa.load_weights(model, "model.weights.h5")  # doctest: +SKIP
    >>> print(report)  # doctest: +SKIP
    """
    with held_back():
        return plan(
            model,
            path,
            by_name=by_name,
            skip_mismatch=skip_mismatch,
            objects_to_skip=objects_to_skip,
            session=session,
            mode=mode,
            atomic=atomic,
            progress=progress,
            options=options,
        ).execute()


def plan(
    model: Any,
    path: str | os.PathLike[str],
    *,
    by_name: bool = False,
    skip_mismatch: bool = False,
    objects_to_skip: Iterable[Any] | None = None,
    session: Any = None,
    mode: str = "copy",
    atomic: bool = False,
    progress: bool | Callback | None = None,
    options: LoadOptions | None = None,
) -> Plan:
    """Plan a load without doing it: which tensor goes where, by which route, and how much memory it takes.

    The arguments are those of ``load_weights``. Nothing is read but metadata, and nothing is changed.

    Returns
    -------
    Plan
        ``print`` it, turn it into JSON with ``to_dict()``, run it with ``execute()``.

    Raises
    ------
    Mismatch, Unreadable, Malformed, Truncated, Refused, Budget
        As ``load_weights``, before anything changes.
    """
    if session is not None:
        raise Unsupported("loading into a TensorFlow 1 session is not supported yet", file=path)
    if mode != "copy":
        raise ValueError(f'mode must be "copy", not {mode!r}')
    options = options or LoadOptions()
    begin = time.perf_counter()
    model_targets = discover(model)
    request = Request(
        by_name=by_name,
        skip_mismatch=skip_mismatch,
        objects_to_skip=None if objects_to_skip is None else tuple(objects_to_skip),
    )
    layout = choose_layout(model_targets, Path(path), request)
    model_targets.check_built(layout)
    prepared = time.perf_counter()
    catalog = _open(path, options)
    indexed = time.perf_counter()
    matching = match(model_targets, catalog, layout, request, options)
    matched = time.perf_counter()

    from fastassign.assigning.execute import execute

    executor = partial(
        execute, convert_layer=getattr(model_targets, "convert_layer", None), skip_mismatch=skip_mismatch
    )
    made = make_plan(catalog, matching, options, atomic=atomic, executor=executor, progress=progress)
    made.seconds.update(
        index=indexed - prepared,
        match=matched - indexed + prepared - begin,
        plan=time.perf_counter() - matched,
    )
    return made


def inspect(path: str | os.PathLike[str], *, options: LoadOptions | None = None) -> Catalog:
    """List what is in a weight file, without TensorFlow and without reading tensors.

    Parameters
    ----------
    path : str or os.PathLike
        An HDF5 file or ``.keras`` archive.
    options : LoadOptions, optional
        Policy, limits and index cache.

    Returns
    -------
    Catalog
        A mapping of HDF5 paths to tensors; ``catalog["layer/kernel"].read()`` reads one.

    Raises
    ------
    Unreadable, Malformed, Truncated, Refused
        The file can't be indexed.
    """
    return _open(path, options or LoadOptions())


def _open(path: str | os.PathLike[str], options: LoadOptions) -> Catalog:
    return open_catalog(
        path,
        limits=options.limits,
        allow=options.allow,
        use_cache=options.index_cache,
        max_inflated_bytes=options.max_staging_bytes,
    )
