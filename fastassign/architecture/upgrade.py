"""A configuration brought up to the running library."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from fastassign.architecture.rules import Rule
from fastassign.architecture.saved import nodes


def upgraded(config: dict[str, Any], rules: Iterable[Rule]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Apply rules to every object of a configuration.

    Parameters
    ----------
    config : dict
        The configuration, which is not changed.
    rules : iterable of Rule
        In the order in which they apply to one object; outer objects come before those inside.

    Returns
    -------
    (dict, tuple of str)
        The new configuration, and the texts of the rules that changed something.
    """
    made, rules = copy.deepcopy(config), tuple(rules)
    applied: dict[str, None] = {}
    for node in nodes(made):
        for rule in rules:
            if rule.apply(node):
                applied[rule.text] = None
    return made, tuple(applied)
