"""The verbs: what a user calls."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from fastassign.catalog.catalog import Catalog
from fastassign.errors import name_state
from fastassign.gc_pause import gc_paused
from fastassign.matching.match import Request
from fastassign.options import LoadOptions
from fastassign.pipeline import LoadSpec, index, request_of, total
from fastassign.plan import Plan
from fastassign.progress import Callback
from fastassign.report import Report
from fastassign.runtime import process_runtime
from fastassign.targets.discover import check_tensorflow


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
    model : keras.Model, tf_keras.Model, or mapping or sequence of variables
        A built model: Keras 3 on the TensorFlow backend, or tf_keras. Or variables without one: a mapping from
        their names in the file (the HDF5 path, or the end of it), or a sequence of variables that are called there
        as they are in TensorFlow.
    path : str or os.PathLike
        ``.weights.h5``, ``.keras``, or a legacy ``.h5``/``.hdf5`` file (weights or whole model). As in Keras the
        name decides how it is read.
    by_name : bool
        Legacy files: match the top-level layers by name instead of by order.
    skip_mismatch : bool
        Leave variables whose shape differs as they are, with Keras' warning, instead of raising.
    objects_to_skip : iterable of keras.Layer, optional
        Keras 3 ``.weights.h5`` files: layers that keep their values.
    session : tf.compat.v1.Session, optional
        Where the variables belong to a TensorFlow 1 graph; the default session, or tf_keras' own, if not given.
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
    NoSession (ValueError)
        The variables belong to a graph, and there is no session.
    Truncated, ReadFailed, Changed (OSError)
        While reading: the error's ``assigned`` names the variables that have new values already.

    Examples
    --------
    >>> import fastassign as fa
    >>> report = fa.load_weights(model, "model.weights.h5")  # doctest: +SKIP
    >>> print(report)  # doctest: +SKIP
    """
    with gc_paused():
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
    if mode != "copy":
        raise ValueError(f'mode must be "copy", not {mode!r}')
    return LoadSpec(
        model=model,
        request=request_of(by_name=by_name, skip_mismatch=skip_mismatch, objects_to_skip=objects_to_skip),
        options=options or LoadOptions(),
        session=session,
        atomic=atomic,
        progress=progress,
    ).plan(path)


def assign(pairs: Iterable[tuple[Any, Any]], session: Any = None, *, options: LoadOptions | None = None) -> Report:
    """Give variables values: Keras' ``batch_set_value``, checked before anything changes, and fast.

    Parameters
    ----------
    pairs : iterable of (variable, value)
        Variables of Keras 3, tf_keras or TensorFlow, eager or of a TensorFlow 1 graph. A value is an array, or
        anything that numpy makes one of, or a tensor of a file: ``fastassign.inspect(path)["layer/kernel"]``.
        Values are cast to the variable's dtype by numpy's rules, as Keras does, and copied: an array may change
        afterwards. A variable that comes twice gets the later value.
    session : tf.compat.v1.Session, optional
        For variables of a graph; the default session, or tf_keras' own, if not given.
    options : LoadOptions, optional
        Every other knob.

    Returns
    -------
    Report
        What was assigned and cast, and where the time went.

    Raises
    ------
    Mismatch (ValueError)
        A value has another shape than its variable, or is no number.
    NoSession (ValueError)
        The variables belong to a graph, and there is no session.
    Budget (MemoryError)
        A value does not fit into ``options.max_staging_bytes``.
    Truncated, ReadFailed, Changed (OSError)
        While reading a file: the error's ``assigned`` names the variables that have new values already.

    Examples
    --------
    >>> import fastassign as fa
    >>> fa.assign([(layer.kernel, kernel), (layer.bias, 0.5 * bias)])  # doctest: +SKIP
    """
    check_tensorflow()
    from fastassign.matching.variables.by_pair import match_pairs

    with gc_paused():
        spec = LoadSpec(model=None, request=Request(), options=options or LoadOptions(), session=session)
        begin = time.perf_counter()
        matchings = match_pairs(pairs)
        matched = time.perf_counter() - begin
        # All are planned before the first is carried out.
        plans = [
            spec.plan_matching(origin, matching, {"match": matched / len(matchings)}) for origin, matching in matchings
        ]
        return total(_execute_all(plans))


def _execute_all(plans: list[Plan]) -> list[Report]:
    names = [[target.name for target in made.matching.targets] for made in plans]
    reports: list[Report] = []
    for made in plans:
        try:
            reports.append(made.execute())
        except BaseException as error:
            before = [name for each in names[: len(reports)] for name in each]
            name_state(error, (*before, *getattr(error, "assigned", ())), sum(map(len, names)))
            raise
    return reports


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
    return index(path, options or LoadOptions())


def release_buffers() -> None:
    """Give the host memory that fastassign keeps for the next load back to the system.

    It keeps at most 1 GiB, of what variables of TensorFlow 1 graphs let go of, and the slots that the loads before went
    to GPUs through, which stay page-locked (at most ``LoadOptions.max_staging_bytes``; what a load that is under way
    needs stays too). Memory of eager variables belongs to TensorFlow, which keeps it itself.
    """
    process_runtime().release()
