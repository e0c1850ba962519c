"""Questions about TensorFlow on a real card: ``python -m fastassign.benchmarks.questions.run``.

TensorFlow's source suggests the answers; the experiments check them. Each may be run alone (``--only NAME``), and one
that fails does not stop the next.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastassign.benchmarks import machine
from fastassign.benchmarks.device.card import Card, describe, find_card
from fastassign.benchmarks.questions.copies import casts, coexistence, latency, pinned, pipelining
from fastassign.benchmarks.questions.experiment import Answer, Scale
from fastassign.benchmarks.questions.memory import accounting, addresses, aliases, copy_on_read, placement, recycling
from fastassign.benchmarks.steps import Steps, Tell
from fastassign.errors import Unsupported

QUESTIONS: tuple[Callable[[Card, Scale], Answer], ...] = (
    placement, addresses, aliases, copy_on_read, accounting, coexistence, casts, recycling, pinned, latency, pipelining,
)  # fmt: skip


def ask(
    card: Card,
    *,
    only: Sequence[str] = (),
    scale: Scale | None = None,
    tell: Tell = lambda _: None,
    save: Callable[[list[dict[str, Any]]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Ask the questions.

    Parameters
    ----------
    card : Card
        The device.
    only : sequence of str
        Names of the questions to ask; all if empty.
    scale : Scale, optional
        The sizes of the experiments.
    tell : callable
        Gets a line before each question, and its answer.
    save : callable
        Gets the answers so far, after each question.

    Returns
    -------
    list of dict
        ``name``, ``question``, ``finding`` and ``figures`` of each question, or its error.
    """
    steps = Steps(tell)
    found: list[dict[str, Any]] = []
    for question in QUESTIONS:
        name = question.__name__
        if only and name not in only:
            continue
        text = (question.__doc__ or "").strip()
        answer = steps.run(f"{name}: {text}", lambda q=question: q(card, scale or Scale())._asdict())  # type: ignore[misc]
        steps.tell(f"    {answer.get('finding', 'no answer')}")
        found.append({"name": name, "question": text, **answer})
        save(found)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask the questions, and print and write the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="gpu", help="gpu (default) or gpu:1")
    parser.add_argument("--only", action="append", default=[], choices=[each.__name__ for each in QUESTIONS])
    parser.add_argument("--json", type=Path, help="also write the answers to this file")
    given = parser.parse_args(arguments)
    try:
        card = find_card(given.device)
    except Unsupported as error:
        parser.exit(1, f"{error}\n")
    about = {**machine.describe(), "card": describe(card)}

    def tell(line: str) -> None:
        print(line, flush=True)

    def save(found: list[dict[str, Any]]) -> None:
        if given.json is not None:
            given.json.write_text(json.dumps({"machine": about, "questions": found}, indent=1, default=str) + "\n")

    tell(json.dumps(about["card"], indent=1, default=str))
    ask(card, only=given.only, tell=tell, save=save)


if __name__ == "__main__":
    main()
