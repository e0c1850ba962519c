"""A function of a library, replaced: the call goes through fastassign, or back to where it came from."""

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
    """A call is the library's to answer; the text says why. No caller sees it."""


class Executable(Protocol):
    """What a route returns: all that can be checked has been checked, nothing has changed."""

    def execute(self) -> Report:
        """Do it."""


# From the arguments of a call, by name, and the options in force, to what is to be done.
Route = Callable[[Mapping[str, Any], LoadOptions | None], Executable]


@dataclass(frozen=True, slots=True, eq=False)
class Holder:
    """Who wants calls to go through fastassign: ``install``, or a block of ``accelerate``.

    Attributes
    ----------
    options : LoadOptions or None
        How its loads are done.
    """

    options: LoadOptions | None = None


# The newest comes last, and its options count. Changed under the lock of `switch`; replaced, so read without.
holders: tuple[Holder, ...] = ()


class _Thread(threading.local):
    inside = False


_thread = _Thread()


@contextmanager
def _inside() -> Iterator[None]:
    """Leave the calls that are made from within a call to the library."""
    _thread.inside = True
    try:
        yield
    finally:
        _thread.inside = False


def _in_force() -> Holder | None:
    """Return whose options count for a call that begins now; ``None`` if the library answers it."""
    now = holders
    return now[-1] if now and not _thread.inside else None


def redirect(
    call: str,
    stock: Callable[..., Any],
    route: Route,
    *,
    subject: str = "",
    finish: Callable[[Mapping[str, Any]], None] | None = None,
) -> Callable[..., Any]:
    """Make a function that does through fastassign what a function of a library does.

    Parameters
    ----------
    call : str
        What users know the function as, for the log.
    stock : callable
        The function. It does what fastassign does not cover, everything while nobody holds the switch, and what is
        called from within another redirected call.
    route : callable
        Makes of the arguments what is to be done; raises ``NotCovered`` for what is the library's.
    subject : str, optional
        The argument that the log names.
    finish : callable, optional
        Does what then remains to be done.

    Returns
    -------
    callable
        It has the signature of ``stock``, and returns ``None`` where it did not call that.
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
                report = route(arguments, holder.options).execute()
        except NotCovered as gap:
            tell_stock(what, gap)
        else:
            _tell_ours(what, report)
            return None if finish is None else finish(arguments)
        # Out here, so that an error of the library's does not carry the reason along as its context.
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
    """Make a function that runs the code of a library's function, with some of what it calls replaced.

    Nobody else notices: other callers of the inner functions, other threads among them, get the library's own.

    Parameters
    ----------
    call, stock, subject
        As for ``redirect``.
    inner : callable
        Gives the replacements, from what the log calls this call, and its arguments; raises ``NotCovered``.
    calls : tuple of str
        The global names of ``stock`` that are replaced.

    Raises
    ------
    Gap
        ``stock`` does not call these: it is not the function that this was written for.
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
        except NotCovered as gap:
            tell_stock(what, gap)
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
    """Make a function that calls a library's function, and says that it is not fastassign's."""
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
    """Log that a call is the library's."""
    log.info("%s: by the library itself, because %s", what, printable(str(reason)))


def _tell_ours(what: str, report: Report) -> None:
    # With the report itself, for handlers that want to know more.
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
        # An open file: h5py's have a `name` too, which is "/".
        value = getattr(value, "filename", None) or getattr(value, "name", value)
    return printable(f"{call}({str(value)!r})")


def _opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make TensorFlow take a replaced function as it is."""
    # What `functools.wraps` copied leads TensorFlow's own inspection past this function.
    vars(function).pop("_tf_decorator", None)
    # AutoGraph rewrites what a traced function calls, unless it is Keras', or has this attribute.
    function.autograph_info__ = {}  # type: ignore[attr-defined]
    return function
