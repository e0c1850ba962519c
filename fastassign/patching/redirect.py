"""Replacements for a library's functions: a call goes through fastassign, or to the original function."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from fastassign.gc_pause import gc_paused
from fastassign.options import LoadOptions
from fastassign.report import Report
from fastassign.text import printable

log = logging.getLogger("fastassign")


class NotCovered(Exception):
    """Says why a call is left to the library. It never reaches a caller."""


class Executable(Protocol):
    """A load that is checked and planned, before anything has changed."""

    def execute(self) -> Report:
        """Do the load."""


# Makes a load from the arguments of a call, by name, and the options in force.
Planner = Callable[[Mapping[str, Any], LoadOptions | None], Executable]


@dataclass(frozen=True, slots=True, eq=False)
class Holder:
    """A request that calls go through fastassign: by ``install``, or by a block of ``accelerate``.

    Attributes
    ----------
    options : LoadOptions or None
        The options of its loads.
    """

    options: LoadOptions | None = None


# The newest is last, and its options count. The tuple is replaced under the lock of `switch`, and read without one.
holders: tuple[Holder, ...] = ()


class _Thread(threading.local):
    inside = False


_thread = _Thread()


@contextmanager
def _inside() -> Iterator[None]:
    """Leave nested calls to the library."""
    _thread.inside = True
    try:
        yield
    finally:
        _thread.inside = False


def _in_force() -> Holder | None:
    """Return the holder whose options count for a call that begins now; ``None`` if the call is the library's."""
    now = holders
    return now[-1] if now and not _thread.inside else None


def redirect(
    call: str,
    stock: Callable[..., Any],
    planner: Planner,
    *,
    subject: str = "",
    finish: Callable[[Mapping[str, Any]], None] | None = None,
) -> Callable[..., Any]:
    """Make a function that sends calls of a library's function through fastassign.

    Parameters
    ----------
    call : str
        The public name of the function, for the log.
    stock : callable
        The function. It gets the calls that fastassign does not cover, calls from within another redirected call, and
        all calls while there is no holder.
    planner : callable
        Plans the load; raises ``NotCovered`` for calls that are left to the library.
    subject : str, optional
        The name of the argument to show in the log.
    finish : callable, optional
        Does the rest of the call after the load.

    Returns
    -------
    callable
        A function with the signature of ``stock``. It returns ``None`` unless it called ``stock``.
    """
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def redirected(*args: Any, **kwargs: Any) -> Any:
        holder = _in_force()
        if holder is None:
            return stock(*args, **kwargs)
        what = call
        try:
            arguments = _bind(signature, args, kwargs)
            what = _describe(call, arguments, subject)
            with _inside(), gc_paused():
                report = planner(arguments, holder.options).execute()
        except NotCovered as reason:
            tell_stock(what, reason)
        else:
            _tell_ours(what, report)
            return None if finish is None else finish(arguments)
        # Outside of the `try`, so that an error of the library does not have ours as its context.
        with _inside():
            return stock(*args, **kwargs)

    return _opaque(redirected)


def redirect_within(
    call: str,
    stock: Callable[..., Any],
    inner: Callable[[str, Mapping[str, Any]], Mapping[str, Any]],
    *,
    subject: str,
    calls: tuple[str, ...],
) -> Callable[..., Any]:
    """Make a function that runs the code of a library's function, with replacements for some functions that it calls.

    Other callers of these inner functions, in other threads too, still get the library's own.

    Parameters
    ----------
    call, stock, subject
        As for ``redirect``.
    inner : callable
        Returns the replacements, given the text for the log and the arguments of a call; may raise ``NotCovered``.
    calls : tuple of str
        The global names in ``stock`` to replace.

    Raises
    ------
    NotCovered
        ``stock`` does not use these names, so it is not the function that this was written for.
    """
    if not isinstance(stock, types.FunctionType) or not set(calls) <= set(stock.__code__.co_names):
        raise NotCovered(f"it does not call {' and '.join(calls)}")
    original: types.FunctionType = stock
    signature = inspect.signature(original)

    @functools.wraps(original)
    def redirected(*args: Any, **kwargs: Any) -> Any:
        if _in_force() is None:
            return original(*args, **kwargs)
        what = call
        try:
            arguments = _bind(signature, args, kwargs)
            what = _describe(call, arguments, subject)
            replacements = inner(what, arguments)
        except NotCovered as reason:
            tell_stock(what, reason)
            replacements = None
        if replacements is None:
            return original(*args, **kwargs)
        function = types.FunctionType(
            original.__code__,
            {**original.__globals__, **replacements},
            original.__name__,
            original.__defaults__,
            original.__closure__,
        )
        function.__kwdefaults__ = original.__kwdefaults__
        return function(*args, **kwargs)

    return _opaque(redirected)


def announce(call: str, stock: Callable[..., Any], reason: str, *, subject: str) -> Callable[..., Any]:
    """Make a function that calls a library's function, and logs that fastassign does not handle it."""
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def announced(*args: Any, **kwargs: Any) -> Any:
        if _in_force() is not None:
            try:
                what = _describe(call, _bind(signature, args, kwargs), subject)
            except NotCovered:
                what = call
            tell_stock(what, reason)
        return stock(*args, **kwargs)

    return _opaque(announced)


def tell_stock(what: str, reason: object) -> None:
    """Log that the library handles a call, and why."""
    log.info("%s: by the library itself, because %s", what, printable(str(reason)))


def _tell_ours(what: str, report: Report) -> None:
    # The report itself is attached for logging handlers.
    seconds = report.seconds.get("total", 0.0)
    log.debug(
        "%s: by fastassign, %d variables, %d bytes, %.1f ms",
        what,
        report.assigned,
        report.nbytes,
        seconds * 1e3,
        extra={"report": report},
    )


def _bind(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise NotCovered(f"it does not take these arguments ({error})") from error
    bound.apply_defaults()
    return bound.arguments


def _describe(call: str, arguments: Mapping[str, Any], subject: str) -> str:
    value = arguments.get(subject)
    if value is None:
        return call
    if isinstance(value, (list, tuple)):
        return f"{call}({len(value)} variables)"
    if not hasattr(value, "__fspath__"):
        # An open file. The `name` of an h5py file is "/", so its `filename` comes first.
        value = getattr(value, "filename", None) or getattr(value, "name", value)
    return printable(f"{call}({str(value)!r})")


def _opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make TensorFlow use a replaced function as it is."""
    # `functools.wraps` copied this attribute, which would lead TensorFlow's inspection past this function.
    vars(function).pop("_tf_decorator", None)
    # AutoGraph rewrites the functions that a traced function calls, except Keras' own and those with this attribute.
    function.autograph_info__ = {}  # type: ignore[attr-defined]
    return function
