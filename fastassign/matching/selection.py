"""The variables to load, and their new names: the options ``include``, ``exclude`` and ``rename``.

Names are paths with ``/`` between their parts and without TensorFlow's ``:0``. A pattern that matches the leading parts
of a path matches everything below.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence

from fastassign.errors import Mismatch
from fastassign.options import LoadOptions

Rename = Mapping[str, str | None] | Callable[[str], str | None]


class Selection:
    """The three options, for one load; it remembers which patterns matched, to report the others.

    Parameters
    ----------
    rename : mapping or callable, optional
        From paths in the file to paths in the model.
    include, exclude : sequence of str
        Patterns.
    """

    def __init__(self, rename: Rename | None, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._function = rename if callable(rename) else None
        mapping = {} if rename is None or callable(rename) else rename
        self._mapping = {_plain(old): new if new is None else _plain(new) for old, new in mapping.items()}
        self._include = tuple(map(_plain, include))
        self._exclude = tuple(map(_plain, exclude))
        # The old names and patterns that matched, and the paths on both sides that they were compared with.
        self._used: set[str] = set()
        self._saved: dict[str, None] = {}
        self._present: dict[str, None] = {}

    @classmethod
    def of(cls, options: LoadOptions) -> Selection | None:
        """Return the selection that options ask for; ``None`` where they ask for none."""
        if options.rename is None and not options.include and not options.exclude:
            return None
        return cls(options.rename, options.include, options.exclude)

    @property
    def renames(self) -> bool:
        """Whether any name changes."""
        return self._function is not None or bool(self._mapping)

    def new_path(self, path: str, *spellings: str) -> str | None:
        """Return the path in the model of a weight of the file; ``None`` if it is left out.

        Parameters
        ----------
        path : str
            The path; a function for ``rename`` gets it.
        spellings : str
            Other names of the weight that a mapping may use.
        """
        self._saved[path] = None
        if self._function is not None:
            new = self._function(path)
            if new is not None and not isinstance(new, str):
                raise TypeError(f"rename must return a string or None, not {new!r} (for {path!r})")
            return new if new is None else _plain(new)
        for spelling in map(_plain, (path, *spellings)) if self._mapping else ():
            for leading in reversed(("", *leading_parts(spelling))):
                if leading in self._mapping:
                    self._used.add(leading)
                    new = self._mapping[leading]
                    return new if new is None else _join(new, spelling[len(leading) :].strip("/"))
        return path

    def takes(self, path: str, own: str, place: str = "") -> bool:
        """Whether a variable is to be loaded.

        Parameters
        ----------
        path : str
            The names of the layers around the variable, from the outermost, and the last part of its own name.
        own : str
            Its own name. Only the whole name counts, because it may begin like that of a layer somewhere else.
        place : str
            Its path in a Keras 3 file.
        """
        paths = dict.fromkeys((*leading_parts(_plain(path)), _plain(own), *leading_parts(place)))
        self._present.update(paths)
        included, excluded = self._fits(self._include, paths), self._fits(self._exclude, paths)
        return (included or not self._include) and not excluded

    def check(self) -> None:
        """Raise an error for patterns and old names that matched nothing.

        Raises
        ------
        Mismatch
            One matched nothing; the hint gives the nearest names.
        """
        for label, patterns in (("include", self._include), ("exclude", self._exclude)):
            for pattern in patterns:
                if pattern not in self._used:
                    raise _useless(f"{label}={pattern!r} matches no layer or variable", pattern, self._present)
        below = {leading for path in self._saved for leading in leading_parts(path)}
        for old in self._mapping:
            if old not in self._used:
                raise _useless(f"rename has {old!r}, which is not in the file", old, below)

    def _fits(self, patterns: Iterable[str], paths: Iterable[str]) -> bool:
        found = {pattern for pattern in patterns if any(fnmatch.fnmatchcase(path, pattern) for path in paths)}
        self._used |= found
        return bool(found)


def leading_parts(path: str) -> tuple[str, ...]:
    """Return a path's first part, first two parts, and so on to the whole.

    >>> leading_parts("a/b/c")
    ('a', 'a/b', 'a/b/c')
    """
    parts = path.split("/")
    return tuple("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def path_below(layer: str, weight: str) -> str:
    """Return the path of a weight as ``layer/...``, without the names of models that its own name may begin with.

    >>> path_below("dense", "sequential/dense/kernel:0")
    'dense/kernel'
    >>> path_below("base", "dense/kernel:0")
    'base/dense/kernel'
    """
    name = _plain(weight)
    _, found, rest = f"/{name}".partition(f"/{layer}/")
    return f"{layer}/{rest if found else name}"


def _plain(name: str) -> str:
    return name.strip("/").removesuffix(":0")


def _join(path: str, rest: str) -> str:
    return f"{path}/{rest}" if path and rest else path or rest


def _useless(text: str, name: str, known: Iterable[str]) -> Mismatch:
    names = list(known)[:5000]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return Mismatch(text, hint="did you mean: " + ", ".join(near) if near else "there are: " + ", ".join(names[:5]))
