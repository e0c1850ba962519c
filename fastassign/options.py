"""All options of a load, with their defaults and the reasons for these."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastassign.catalog.policy import RULES, Limits
from fastassign.report import Report

_CHOICES: dict[str, tuple[Any, ...]] = {
    "match": ("names", "stock"),
    "conv_flip": (True, False, None),
    "swap": ("each", "together"),
    "library": ("keras", "tf_keras", None),
}

_LEAST = {
    "threads": 1,
    "read_bytes": 4096,
    "gap_bytes": 0,
    "window_bytes": 1,
    "arena_bytes": 0,
    "max_staging_bytes": 0,
}

_DEVICE_CHOICES: dict[str, tuple[Any, ...]] = {
    "route": ("auto", "eager", "direct", "fused"),
    "cut": ("auto", "split", "function", "scatter"),
    "direct_io": (True, False),
    "page_lock": (True, False, None),
}

_DEVICE_LEAST = {"threads": 1, "slot_bytes": 16384, "window_bytes": 1, "fused_bytes": 0}


def _check_choices(options: LoadOptions | DeviceOptions, choices: Mapping[str, tuple[Any, ...]]) -> None:
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise ValueError(f"{name} must be {_one_of(allowed)}, not {getattr(options, name)!r}")


def _check_least(options: LoadOptions | DeviceOptions, bounds: Mapping[str, int]) -> None:
    for name, least in bounds.items():
        if getattr(options, name) < least:
            raise ValueError(f"{name} must be at least {least}, not {getattr(options, name)}")


def _one_of(choices: tuple[Any, ...]) -> str:
    *first, last = (f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in choices)
    return f"{', '.join(first)} or {last}"


def _default_threads() -> int:
    # Measured on 2 cores (ms, medians of 9, page cache warm): ResNet152 152, 103, 109, 123 with 1, 2, 3, 4 threads;
    # the GPT-like model 170, 97, 95, 95. So one a core; no more than four, because by then memory is the limit and
    # readers only take cores from the model that is being served (not measured on more cores).
    return max(1, min(4, os.cpu_count() or 1))


def _default_device_threads() -> int:
    # One thread fills memory more slowly than a GPU's bus empties it, so all cores read, up to the number from which
    # more would only add slots. Reasoned, not measured on a card yet.
    return max(1, min(16, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """How values get to a GPU: ``LoadOptions(device=DeviceOptions(...))``. Frozen.

    For all functions that assign: ``load_weights``, ``plan``, ``Loader``, ``load_model`` and ``assign``. Except where
    it says otherwise, the defaults are reasoned, not yet measured on a card (``fastassign bench --device gpu --case
    sweep`` measures them).

    Attributes
    ----------
    route : {"auto", "eager", "direct", "fused"}
        How values get into variables on a GPU (``docs/gpu.md``). ``"auto"`` chooses by size, dtype and what the machine
        offers. The others are for measuring and are taken where they are possible; ``"direct"`` and ``"fused"`` raise
        ``Unsupported`` if no value can take them.
    cut : {"auto", "split", "function", "scatter"}
        How small variables that share one copy to a GPU get their values out of it. ``"split"``: by eager ops that cut
        it up. ``"function"``: by one function of TensorFlow's runtime, which pays for repeated loads. ``"scatter"``: by
        a kernel that copies each value to memory of its own. ``"auto"`` takes the way with the least expected time, and
        the plan says why.
    slot_bytes : int
        Bytes of one page-locked slot, rounded up to whole pages; no copy to a GPU is larger. Slots are smaller if
        ``LoadOptions.max_staging_bytes`` has no room for two of them for each GPU.
    fused_bytes : int
        In a load that is not repeated, variables on a GPU up to this size share one copy; larger ones get memory of
        their own, which they need not share with the others afterwards.
    threads : int
        Threads that read if weights go to a GPU, in place of ``LoadOptions.threads``: one a core, at most 16.
    window_bytes : int
        The most GPU memory for values that have arrived but are not assigned yet; a larger variable is alone in it. It
        should hold a few of the largest variables, so that one arrives while another is assigned.
    direct_io : bool
        Whether values that take the route ``"direct"`` are read past the page cache (``O_DIRECT``), if the file system
        can do that. It helps where storage is faster than the kernel fills its cache, and for files that are read once;
        a file that is already in the cache is read several times slower. Measured on a virtual disk of 1 to 1.5 GB/s it
        gained nothing with 1 to 8 threads, so it is off.
    page_lock : bool, optional
        Whether the memory that copies to a GPU go through is page-locked. ``None``: if the system allows it, and the
        report says if it did not. ``True``: raise ``NotPageLocked`` if it does not. ``False``: never.
    """

    route: Literal["auto", "eager", "direct", "fused"] = "auto"
    cut: Literal["auto", "split", "function", "scatter"] = "auto"
    slot_bytes: int = 8 << 20
    fused_bytes: int = 1 << 20
    threads: int = field(default_factory=_default_device_threads)
    window_bytes: int = 512 << 20
    direct_io: bool = False
    page_lock: bool | None = None

    def __post_init__(self) -> None:
        """Check the values, so that every instance is valid."""
        _check_choices(self, _DEVICE_CHOICES)
        _check_least(self, _DEVICE_LEAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a load is done. Frozen: share one between loads and threads.

    The brackets say which functions use an option:

    - ``[loads]``: ``load_weights``, ``plan``, ``Loader`` and ``load_model``, and Keras' own calls under ``accelerate``
      and ``install``;
    - ``[loads, assign]``: these and ``assign``;
    - ``[loads, inspect]``: these and ``inspect``;
    - ``[Loader]``, ``[load_model]``: that one alone.

    Options that a function does not use change nothing there.

    Attributes
    ----------
    match : {"names", "stock"}
        ``[loads]`` How the weights inside a composite layer of a legacy file find their variables. Stock goes by
        position alone, which silently swaps weights if ``trainable`` differs between saving and loading; ``"names"``
        uses the names in the file where they tell the order.
    rename : mapping or callable, optional
        ``[loads]`` Names in the file to names in the model, where they differ. Names are paths: in legacy files the
        layer's name and the names below it (``"dense_3"``, ``"backbone/dense/kernel"``), in Keras 3 files the paths
        that ``inspect`` lists (``"layers/dense"``, ``"layers/dense/vars/0"``). A mapping renames the longest leading
        part of a path that it has; ``""`` is the beginning of every path. A function gets the whole path of each
        weight. ``None`` as the new name leaves the weight out.
    include, exclude : tuple of str
        ``[loads]`` Patterns (``*``, ``?``, ``[...]``; ``*`` also matches ``/``) of the layers and variables to load,
        and not to load: names of layers as they are nested (``"backbone/dense_*"``), paths of variables (``"*/bias"``),
        for Keras 3 files also places in the file. A pattern that matches the leading parts of a path matches everything
        below. Variables that are not included, or are excluded, keep their values.

        With ``rename``, ``include`` or ``exclude``, legacy files are matched by the names of the layers; every selected
        layer has to be in the file (except with ``by_name``), and the rest of the file is only reported.
    conv_flip : bool, optional
        ``[loads]`` Whether convolution kernels in a legacy file are flipped along all spatial axes, as Theano's
        convolution needs it. ``None``: if the file says that its backend was Theano. ``True``: all kernels of the file,
        whatever it says. ``False``: none, which is how Keras 3 and tf_keras load it.
    reshape : bool
        ``[loads]`` Whether an array of the right size but another shape is reshaped into its variable, as Keras 2 did
        with ``load_weights(reshape=True)``.
    threads : int
        ``[loads, assign]`` Threads that read, including the calling one (it reads while it has nothing to assign). More
        of them help storage with many queues, not the page cache.
    read_bytes : int
        ``[loads, assign]`` Bytes per read. 2 to 16 MiB are equal within noise; 1 MiB costs 6 %.
    gap_bytes : int
        ``[loads, assign]`` Neighbouring tensors with at most this many bytes between them share one read.
    window_bytes : int
        ``[loads, assign]`` Bytes read ahead of the assignments. Small enough that new values use the memory of replaced
        ones while it is still warm, large enough to keep the readers busy: 32 to 256 MiB are equal within noise, 16 MiB
        costs 5 to 10 %, 8 MiB 20 to 30 %.
    arena_bytes : int
        ``[loads, assign]`` Variables up to this size share one buffer; larger ones get one of their own. Allocating
        costs TensorFlow 15 to 20 microseconds a variable, which is the price of copying about 100 kB: with 64 to 512
        KiB ResNet152 loads 10 % faster than with 0. A buffer lives until the last of its variables is replaced, which
        speaks for the small end.
    max_staging_bytes : int
        ``[loads, assign, inspect]`` The most host memory for values that are read but not yet assigned, page-locked
        slots included. A load that needs more raises ``Budget`` before it starts. It also bounds what compressed
        weights in a ``.keras`` archive may inflate to.
    device : DeviceOptions
        ``[loads, assign]`` The options of loads to a GPU.
    swap : {"each", "together"}
        ``[Loader]`` How it changes variables that are in use. ``"each"``: one after the other, as early as possible.
        ``"together"``: all at the end, under ``Loader.lock``, so that a thread that holds the lock never sees old
        values beside new ones. That takes host memory of the size of all weights.
    library : {"keras", "tf_keras"} or None
        ``[load_model]`` The library that builds the model. ``None``: the one that ``tf.keras`` is in this process,
        which is tf_keras if the environment has ``TF_USE_LEGACY_KERAS=1``, else Keras 3.
    on_report : callable or None
        ``[load_model]`` A function that gets the ``Report``, because ``load_model`` returns the model.
    allow : frozenset of str
        ``[loads, assign, inspect]`` Rules of the policy for untrusted files to switch off, by name
        (``docs/policy.md``).
    limits : Limits
        ``[loads, inspect]`` Bounds on the size of a file's index.
    index_cache : bool
        ``[loads, inspect]`` Whether the index of the file may be taken from the user's cache folder, and kept there.
    """

    match: Literal["names", "stock"] = "names"
    # A dictionary has no hash; options that differ only here share one.
    rename: Mapping[str, str | None] | Callable[[str], str | None] | None = field(default=None, hash=False)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    conv_flip: bool | None = None
    reshape: bool = False
    threads: int = field(default_factory=_default_threads)
    read_bytes: int = 4 << 20
    gap_bytes: int = 4096
    window_bytes: int = 64 << 20
    arena_bytes: int = 128 << 10
    max_staging_bytes: int = 8 << 30
    device: DeviceOptions = field(default_factory=DeviceOptions)
    swap: Literal["each", "together"] = "each"
    library: Literal["keras", "tf_keras"] | None = None
    on_report: Callable[[Report], None] | None = None
    allow: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    index_cache: bool = True

    def __post_init__(self) -> None:
        """Check the values, so that every instance is valid."""
        object.__setattr__(self, "allow", frozenset(self.allow))
        unknown = sorted(self.allow - RULES.keys())
        if unknown:
            raise ValueError(f"unknown rule {unknown[0]!r} in allow; the rules are {', '.join(sorted(RULES))}")
        self._check_selection()
        if not isinstance(self.device, DeviceOptions):
            raise TypeError(f"device must be a DeviceOptions, not {self.device!r}")
        _check_choices(self, _CHOICES)
        _check_least(self, _LEAST)

    def _check_selection(self) -> None:
        if isinstance(self.rename, Mapping):
            object.__setattr__(self, "rename", dict(self.rename))
            names: list[Any] = [*self.rename, *(new for new in self.rename.values() if new is not None)]
            if not all(isinstance(name, str) for name in names):
                raise TypeError("rename must map strings to strings or None")
        elif self.rename is not None and not callable(self.rename):
            raise TypeError(f"rename must be a mapping or a function, not {self.rename!r}")
        for name in ("include", "exclude"):
            given: Any = getattr(self, name)
            patterns = (given,) if isinstance(given, str) else tuple(given)
            if not all(isinstance(pattern, str) and pattern for pattern in patterns):
                raise TypeError(f"{name} must be a pattern or several, not {given!r}")
            object.__setattr__(self, name, patterns)
