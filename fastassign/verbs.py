"""The verbs: the functions that a user calls."""

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

    After the call every variable holds, bit for bit, the value that Keras would have given it. Where Keras is known to
    be silently wrong, it holds the right value, or the call raises (``docs/differences.md``). All that can be checked
    is checked before the first variable changes.

    Parameters
    ----------
    model : keras.Model, tf_keras.Model, or mapping or sequence of variables
        A built model: Keras 3 on the TensorFlow backend, or tf_keras. Or variables without a model: a mapping from
        their names in the file (the HDF5 path, or the end of it) to the variables, or a sequence of variables that
        have the same names in the file as in TensorFlow.
    path : str or os.PathLike
        ``.weights.h5``, ``.keras``, or a legacy ``.h5``/``.hdf5`` file (weights or whole model). As in Keras, the
        name decides how the file is read.
    by_name : bool
        Legacy files: match the top-level layers by name instead of by order.
    skip_mismatch : bool
        Warn, as Keras does, instead of raising where shapes differ, and leave those variables as they are.
    objects_to_skip : iterable of keras.Layer, optional
        Keras 3 ``.weights.h5`` files: layers that keep their values.
    session : tf.compat.v1.Session, optional
        The session to assign in, for variables of a TensorFlow 1 graph; by default the current default session, or
        tf_keras' own.
    mode : {"copy"}
        The way of values into variables; ``"copy"`` reads the file into memory.
    atomic : bool
        Read everything before the first variable is assigned, so that a failing disk leaves the model as it was.
        This takes host memory of the size of all weights.
    progress : bool or callable, optional
        ``True`` for a bar on a terminal, or a function that gets every ``ProgressEvent``.
    options : LoadOptions, optional
        All other options.

    Returns
    -------
    Report
        The variables assigned, cast, skipped and missing, the unexpected tensors, and the time of each stage.

    Raises
    ------
    Mismatch (ValueError)
        The file and the model do not match; the texts are Keras' own.
    NotFound, Denied, NotAFile, Malformed, Truncated (OSError)
        The file can't be opened, or is damaged.
    Refused (ValueError)
        The file asks for something that the policy for untrusted files does not allow.
    Budget (MemoryError)
        The load does not fit into ``options.max_staging_bytes``.
    NoSession (ValueError)
        The variables belong to a graph, but there is no session.
    Truncated, ReadFailed, Changed (OSError)
        Reading failed; the error's ``assigned`` names the variables that have new values already.

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
    """Plan a load without executing it: the variable and the route of each tensor, and the memory that it all takes.

    The arguments are those of ``load_weights``. Only metadata is read, and nothing changes.

    Returns
    -------
    Plan
        The plan: ``print`` it, turn it into JSON-ready data with ``to_dict()``, or run it with ``execute()``.

    Raises
    ------
    Mismatch, Unreadable, Malformed, Truncated, Refused, Budget
        As for ``load_weights``.
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
        anything that numpy can turn into one, or a tensor of a file: ``fastassign.inspect(path)["layer/kernel"]``.
        As in Keras, values are cast to the variable's dtype by numpy's rules. They are copied: an array may change
        afterwards. A variable that occurs twice gets the later value.
    session : tf.compat.v1.Session, optional
        The session to assign in, for variables of a TensorFlow 1 graph; by default the current default session, or
        tf_keras' own.
    options : LoadOptions, optional
        All other options.

    Returns
    -------
    Report
        The variables assigned and cast, and the time of each stage.

    Raises
    ------
    Mismatch (ValueError)
        A value does not have the shape of its variable, or is not a number.
    NoSession (ValueError)
        The variables belong to a graph, but there is no session.
    Budget (MemoryError)
        A value does not fit into ``options.max_staging_bytes``.
    Truncated, ReadFailed, Changed (OSError)
        Reading a file failed; the error's ``assigned`` names the variables that have new values already.

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
        # All are planned before the first is executed.
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
    """List the tensors in a weight file, without TensorFlow and without reading their values.

    Parameters
    ----------
    path : str or os.PathLike
        An HDF5 file or ``.keras`` archive.
    options : LoadOptions, optional
        The policy, the limits and the use of the index cache.

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
    """Return the host memory that fastassign keeps for the next load to the system.

    It keeps at most 1 GiB of memory that variables of TensorFlow 1 graphs no longer use, and the page-locked slots that
    earlier loads to GPUs went through (at most ``LoadOptions.max_staging_bytes``). Memory that a load under way is
    using stays. The memory of eager variables belongs to TensorFlow, which keeps it itself.
    """
    process_runtime().release()
