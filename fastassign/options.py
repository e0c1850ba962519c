"""Every knob of a load, with its default and the reason for it."""

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
    # the GPT-like model 170, 97, 95, 95. So one a core; no more than four, because memory is the bound by then and
    # readers only take cores from the model that is being served (more cores were not at hand to measure).
    return max(1, min(4, os.cpu_count() or 1))


def _default_device_threads() -> int:
    # A thread fills memory slower than a GPU's bus empties it: so all cores that there are, up to where more would only
    # add slots. Reasoned, not measured on a card yet.
    return max(1, min(16, os.cpu_count() or 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """How values get to a GPU; ``LoadOptions.device``. Frozen. Each default is for a card that was not seen yet.

    Attributes
    ----------
    route : {"auto", "eager", "direct", "fused"}
        How values get into variables on a GPU (``docs/gpu.md``). ``"auto"``: by size, dtype and what is at hand. The
        others are for measuring: each where it is possible; ``"direct"`` and ``"fused"`` raise ``Unsupported`` where
        no value can take them.
    cut : {"auto", "split", "function", "scatter"}
        How many small variables on a GPU get what came in one copy: by eager ops that cut it up, by one function of
        TensorFlow's runtime (which pays for repeated loads), or by a kernel that copies each value to memory of its
        own. ``"auto"``: by what it is expected to take, as the plan says.
    slot_bytes : int
        Bytes of one page-locked slot, rounded up to whole pages; every copy to a GPU is at most as large. It is less
        where ``LoadOptions.max_staging_bytes`` has no room for two of them for each GPU. Not measured on a card yet.
    fused_bytes : int
        Variables on a GPU up to this size share one copy, in a load that does not come again; larger ones get memory of
        their own, which they need not share with the others afterwards. Not measured on a card yet.
    threads : int
        Threads that read where the weights go to a GPU, in place of ``LoadOptions.threads``: one a core, at most 16.
        Not measured on a card yet.
    window_bytes : int
        The most memory of a GPU that values take which have arrived but are not assigned yet; a larger variable is
        alone in it. It should hold a few of the largest variables, so that one arrives while another is assigned. Not
        measured on a card yet.
    direct_io : bool
        Whether what takes the route ``"direct"`` is read past the page cache (``O_DIRECT``), where the file system can
        do that. For storage that is faster than the kernel fills its cache, and files that nobody reads again; a file
        that is in the cache already comes several times slower. On a virtual disk of 1 to 1.5 GB/s it won nothing with
        1 to 8 threads, so it is off.
    page_lock : bool, optional
        Whether the memory that copies to a GPU go through is page-locked. ``None``: where the system allows it, and
        the report says if it did not. ``True``: raise ``NotPageLocked`` if it does not. ``False``: never.
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
        """Check the values, so that options that exist are valid."""
        _check_choices(self, _DEVICE_CHOICES)
        _check_least(self, _DEVICE_LEAST)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a load is done. Frozen: share one between loads and threads.

    Attributes
    ----------
    match : {"names", "stock"}
        How the weights inside a composite layer of a legacy file find their variables. Stock goes by position
        alone, which silently swaps weights when ``trainable`` differs between saving and loading; ``"names"``
        uses the names in the file where they tell the order.
    rename : mapping or callable, optional
        Names in the file to names in the model, where they differ. Names are paths: of legacy files the layer's name
        and what is below it (``"dense_3"``, ``"backbone/dense/kernel"``), of Keras 3 files those that ``inspect`` lists
        (``"layers/dense"``, ``"layers/dense/vars/0"``). A mapping renames the longest leading part of a path that it
        has; ``""`` is the beginning of every path. A function gets the whole path of each weight. ``None`` as the new
        name leaves it out.
    include, exclude : tuple of str
        Patterns (``*``, ``?``, ``[...]``; ``*`` goes across ``/``) of the layers and variables to load, and not to
        load: names of layers as they stand one inside the other (``"backbone/dense_*"``), paths of variables
        (``"*/bias"``), for Keras 3 files also places in the file. What fits the leading parts of a path fits all below.
        Variables that are not included, or excluded, keep their values.

        With any of these three, legacy files are matched by the names of the layers; every selected layer has to be in
        the file (except with ``by_name``), and what else the file holds is only reported.
    conv_flip : bool, optional
        Whether kernels of convolutions in a legacy file are turned round in all spatial axes, as Theano's
        convolution needs it. ``None``: where the file says that its backend was Theano. ``True``: all of the file,
        whatever it says. ``False``: none, as Keras 3 and tf_keras load it.
    reshape : bool
        Whether an array of the right size but another shape is reshaped into its variable, as Keras 2 did with
        ``load_weights(reshape=True)``.
    threads : int
        Threads that read, the calling one included (it reads while it has nothing to assign). More help storage
        with many queues, not the page cache.
    read_bytes : int
        Bytes per read. 2 to 16 MiB are equal within noise; 1 MiB costs 6 %.
    gap_bytes : int
        Neighbouring tensors with at most this many bytes between them share one read.
    window_bytes : int
        Bytes read ahead of the assignments. Small enough that the memory of replaced values is used again for
        new ones while it is still warm, large enough to keep the readers busy: 32 to 256 MiB are equal within
        noise, 16 MiB costs 5 to 10 %, 8 MiB 20 to 30 %.
    arena_bytes : int
        Variables up to this size share one buffer; larger ones get one of their own. Allocating costs
        TensorFlow 15 to 20 microseconds a variable, which is the price of copying about 100 kB: with 64 to 512 KiB
        ResNet152 loads 10 % faster than with 0. A buffer lives until the last of its variables is replaced, which
        speaks for the small end.
    max_staging_bytes : int
        The most host memory that values read but not yet assigned may take, page-locked slots included. A load that
        needs more is refused before it starts.
    device : DeviceOptions
        The knobs of loads to a GPU.
    swap : {"each", "together"}
        How a ``Loader`` changes variables that are in use. ``"each"``: as soon as may be, one after the other;
        ``"together"``: all at the end, under ``Loader.lock``, so that whoever holds it never sees old values beside
        new ones. That takes host memory of the size of all weights.
    library : {"keras", "tf_keras"} or None
        Whose model ``load_model`` makes; ``None`` for what ``tf.keras`` is in this process: tf_keras where the
        environment says ``TF_USE_LEGACY_KERAS=1``, else Keras 3.
    on_report : callable or None
        Gets the ``Report`` of ``load_model``, which returns the model.
    allow : frozenset of str
        Rules of the policy for untrusted files to switch off, by name (see ``docs/policy.md``).
    limits : Limits
        Bounds on what an index may hold.
    index_cache : bool
        Whether the index of the file may be taken from, and kept in, the user's cache folder.
    """

    match: Literal["names", "stock"] = "names"
    # A dictionary has no hash; options that differ in it alone merely share one.
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
        """Check the values, so that an option that exists is valid."""
        object.__setattr__(self, "allow", frozenset(self.allow))
        unknown = sorted(self.allow - RULES.keys())
        if unknown:
            raise ValueError(f"unknown rule {unknown[0]!r} in allow; the rules are {sorted(RULES)}")
        self._check_selection()
        if not isinstance(self.device, DeviceOptions):
            raise TypeError(f"device must be DeviceOptions, not {self.device!r}")
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
                raise TypeError(f"{name} must be patterns, not {given!r}")
            object.__setattr__(self, name, patterns)
