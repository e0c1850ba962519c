"""The policy for untrusted weight files: rules that can be switched off one by one.

A weight file is data from somebody else. The rules decide which parts of it a load may follow and read, from metadata
alone and before any allocation; ``docs/policy.md`` explains each of them. A broken rule becomes a ``Refusal``, which is
raised only if a load needs that path. Limits on the file as a whole are raised while it is indexed.

Not here: whether a tensor fits its variable. ``fastassign.matching`` checks that (equal shapes, before any allocation),
and so keeps declared shapes from driving memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fastassign.catalog.records import Refusal
from fastassign.errors import FastAssignError, Malformed, Refused

# The rules, with the content that each keeps out. Names are stable: users write them in ``LoadOptions(allow={...})``.
RULES: dict[str, str] = {
    "soft-link": "a name that points to another path of the file",
    "external-link": "a name that points into another file",
    "external-storage": "a dataset whose bytes are in other files",
    "virtual-dataset": "a dataset assembled from other datasets or files",
    "filter": "a compression filter other than gzip, shuffle and fletcher32",
    "expansion": "a dataset that declares far more bytes than the file stores for it",
    "overlap": "two datasets that share bytes of the file, or a second name of a group",
}

# To resolve a link of a user-defined class a plugin's code would run, so no option allows them.
USER_LINK_RULE = "user-defined-link"
DTYPE_RULE = "dtype"

# Not a rule: a damaged part of the file. It is an error only for a load that needs it.
DAMAGE = "damage"

# deflate, shuffle, fletcher32: every libhdf5 has them built in, and decodes them without a plugin.
ALLOWED_FILTERS = frozenset({1, 2, 3})

# Keras 3.15 refuses datasets above 4 GiB that declare more than 1000 times the stored bytes, so a bomb below 4 GiB
# passes. Here the floor is lower: the largest plausible size of an all-zero tensor that gzip shrank to nothing.
EXPANSION_FLOOR_BYTES = 256 << 20
MAX_EXPANSION = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on the file as a whole, which keep indexing cheap whatever the file declares.

    Attributes
    ----------
    max_objects : int
        Links in all groups together. The largest published Keras models have fewer than 100,000.
    max_depth : int
        Nesting of groups; Keras writes one level per nested layer, rarely more than ten.
    max_text_bytes : int
        Bytes of all layer and weight names together.
    """

    max_objects: int = 1_000_000
    max_depth: int = 64
    max_text_bytes: int = 64 << 20


def option_for(rule: str) -> str:
    """Return the option that switches a rule off, as a user writes it."""
    return f'LoadOptions(allow={{"{rule}"}})'


def refusal(key: str, rule: str, message: str) -> Refusal:
    """Make the refusal of one path; it names the option that allows the path, if there is one."""
    return Refusal(key=key, rule=rule, message=message, option=option_for(rule) if rule in RULES else None)


def refused(refusal: Refusal, file: str | os.PathLike[str] | None = None) -> FastAssignError:
    """Make the error for a load that needs a refused path: ``Refused``, or ``Malformed`` for a damaged part."""
    if refusal.rule == DAMAGE:
        hint = "the file is damaged: copy or save it again"
        return Malformed(refusal.message, file=file, tensor=refusal.key, hint=hint)
    return Refused(refusal.message, rule=refusal.rule, option=refusal.option, file=file, tensor=refusal.key)


def exceeds_expansion(declared: int, stored: int) -> bool:
    """Whether a dataset declares so many more bytes than it stores that it must be a bomb."""
    return declared > EXPANSION_FLOOR_BYTES and declared > MAX_EXPANSION * stored
