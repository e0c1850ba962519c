"""The figures of the pages, drawn from the committed measurements: ``make figures``.

``python docs/figures.py`` draws ``docs/img/results.svg`` and ``docs/img/timeline.svg`` from the JSON files in
``benchmarks/results``, and needs nothing but the standard library. ``python docs/figures.py --record FOLDER`` measures
the load of the timeline anew first, with fastassign and TensorFlow, by a model file that it makes in that folder.
"""  # noqa: INP001 - a script, not a module of the package

from __future__ import annotations

import argparse
import json
import math
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LOADS = RESULTS / "2-cores-xeon.json"
TIMELINE = RESULTS / "2-cores-xeon-timeline.json"
IMAGES = ROOT / "docs" / "img"

WIDTH = 860
INK, FAINT, GRID = "#1f2430", "#5b6472", "#d9dde3"
STOCK, FIRST, CACHED = "#9aa0a8", "#86b6e8", "#1a66a8"
STAGES = {"index": "#a5639b", "match": "#d9822b", "plan": "#c9a227", "read": "#4a83bd", "assign": "#3f8f4f"}


def results_svg(data: dict[str, Any]) -> str:
    """Draw the seconds of one load, stock and fastassign beside the warm limit, on a logarithmic axis.

    Parameters
    ----------
    data : dict
        What ``fastassign bench --json`` wrote.
    """
    left, right, top, row = 130, 790, 66, 34
    rows = data["comparisons"]
    bottom = top + row * len(rows)

    def at(seconds: float) -> float:
        return left + (right - left) * (math.log10(seconds) + 3) / 5  # from 1 ms to 100 s

    parts = [_text(left - 120, 22, "Seconds for one load, page cache warm (medians, logarithmic scale)", weight="bold")]
    legend = (("stock Keras", STOCK), ("first load", FIRST), ("index cached", CACHED))
    for place, (name, color) in zip((left, left + 120, left + 225), legend, strict=True):
        parts += [_circle(place, 42, color), _text(place + 11, 46, name, color=FAINT)]
    parts += [_line(left + 346, 35, left + 346, 49, INK, 2.5), _text(left + 355, 46, "warm limit", color=FAINT)]
    parts.append(_text(WIDTH - 14, 46, "stock / cached", color=FAINT, anchor="end"))
    for exponent, name in enumerate(("1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"), -3):
        x = at(10.0**exponent)
        parts += [_line(x, top - 8, x, bottom, GRID), _text(x, bottom + 18, name, color=FAINT, anchor="middle")]
    for number, case in enumerate(rows):
        y = top + row * (number + 0.5) - 4
        parts += [
            _text(left - 14, y + 4, case["case"], anchor="end"),
            _line(at(case["cached"]), y, at(case["stock"]), y, GRID, 4),
            _line(at(case["warm_limit"]), y - 9, at(case["warm_limit"]), y + 9, INK, 2.5),
            _circle(at(case["stock"]), y, STOCK),
            _circle(at(case["first"]), y, FIRST),
            _circle(at(case["cached"]), y, CACHED),
            _text(WIDTH - 14, y + 4, f"{case['stock'] / case['cached']:.1f}", anchor="end"),
        ]
    return _svg(bottom + 30, "Seconds for one load by stock Keras and by fastassign", parts)


def timeline_svg(data: dict[str, Any]) -> str:
    """Draw one load in time: the calling thread, and the threads that read for it.

    Parameters
    ----------
    data : dict
        What ``record`` returned.
    """
    left, right, top, row, height = 130, 840, 84, 46, 26
    stages = data["report"]["seconds"]
    before = sum(stages[name] for name in ("index", "match", "plan"))
    lanes = ["calling thread", *(f"reader {n}" for n in range(1, 1 + max(read[0] for read in data["reads"])))]
    bottom, end = top + row * len(lanes), max(before + stages["execute"], 1e-9)

    def bar(lane: int, stage: str, begin: float, stop: float) -> str:
        x, width = left + (right - left) * begin / end, (right - left) * (stop - begin) / end
        return _rect(x, top + row * lane, max(width - 0.3, 0.4), height, STAGES[stage])

    gbps = data["report"]["nbytes"] / stages["total"] / 1e9
    title = f"One load of G (.weights.h5, index not cached): {stages['total'] * 1e3:.0f} ms, {gbps:.1f} GB/s"
    machine = data["machine"]
    where = f"{machine['cores']} cores of an {machine['processor']}, load average {machine['load_average']:.1f}"
    parts = [
        _text(10, 22, title, weight="bold"),
        _text(10, 42, f"{where}, page cache warm, the fastest of {data['repeats']} loads", color=FAINT),
    ]
    for place, name in zip(range(left, WIDTH, 80), STAGES, strict=False):
        parts += [_rect(place, 54, 12, 12, STAGES[name]), _text(place + 17, 64, name, color=FAINT)]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if end * 1e3 / step <= 12)
    for tick in range(0, int(end * 1e3) + 1, step):
        x = left + (right - left) * tick / 1e3 / end
        parts += [_line(x, top - 6, x, bottom - 8, GRID), _text(x, bottom + 8, f"{tick}", color=FAINT, anchor="middle")]
    parts.append(_text(right, bottom + 24, "milliseconds since the call", color=FAINT, anchor="end"))
    parts += [_text(left - 14, top + row * lane + 17, name, anchor="end") for lane, name in enumerate(lanes)]
    begin = 0.0
    for name in ("index", "match", "plan"):
        parts.append(bar(0, name, begin, begin + stages[name]))
        begin += stages[name]
    parts += [bar(lane, "read", before + start, before + stop) for lane, start, stop, _ in data["reads"]]
    parts += [bar(0, "assign", before + start, before + stop) for start, stop in data["assignments"]]
    return _svg(bottom + 34, "A load in time: index, match, plan, then reads beside assignments", parts)


def record(folder: Path, repeats: int = 30) -> dict[str, Any]:
    """Load the GPT-like model several times, and return when the fastest load did each of its steps.

    Parameters
    ----------
    folder : pathlib.Path
        Where the model file is made, 638 MB.
    repeats : int
        Loads.

    Returns
    -------
    dict
        ``machine``; ``repeats``; ``report``, as ``Report.to_dict`` gives it; ``reads``, lists of thread (0 is the
        calling one), begin, end and bytes; ``assignments``, lists of begin and end. In seconds since the execution
        began.
    """
    import fastassign
    from fastassign.benchmarks import machine
    from fastassign.benchmarks.cases.models import gpt_like

    model, path = gpt_like(), folder / "timeline.weights.h5"
    model.save_weights(path)
    options = fastassign.LoadOptions(index_cache=False)
    fastassign.load_weights(model, path, options=options)
    loads = [_watched(lambda: fastassign.plan(model, path, options=options)) for _ in range(repeats)]
    path.unlink()
    fastest = min(loads, key=lambda load: load["report"]["seconds"]["total"])
    fastest["report"]["file"] = path.name
    return {"machine": machine.describe(), "page_cache": "warm", "repeats": repeats, **fastest}


def _watched(make_plan: Any) -> dict[str, Any]:
    """Execute a plan, and note each read and each assignment."""
    plan, caller, preadv = make_plan(), threading.get_ident(), os.preadv
    readers: dict[int, int] = {caller: 0}
    reads: list[tuple[int, float, float, int]] = []
    events: list[float] = []

    def watched_preadv(descriptor: int, buffers: Any, offset: int, /) -> int:
        begin = time.perf_counter()
        count = preadv(descriptor, buffers, offset)
        thread = readers.setdefault(threading.get_ident(), len(readers))
        reads.append((thread, begin, time.perf_counter(), count))
        return count

    os.preadv = watched_preadv  # type: ignore[assignment] # for the one load
    begin = time.perf_counter()
    try:
        report = plan.execute(progress=lambda _: events.append(time.perf_counter()))
    finally:
        os.preadv = preadv
    return {
        "report": report.to_dict(),
        "reads": [[thread, start - begin, stop - begin, count] for thread, start, stop, count in sorted(reads)],
        "assignments": [[start - begin, stop - begin] for start, stop in _assignments(events, reads, begin)],
    }


def _assignments(events: list[float], reads: list[tuple[int, float, float, int]], begin: float) -> list[list[float]]:
    """Return when variables were assigned: each after the one before, and after the reads that had ended by then."""
    ends = sorted(stop for _, _, stop, _ in reads)
    spans: list[list[float]] = []
    previous = begin
    for event in events:
        read = max((end for end in ends if end < event), default=begin)
        if previous >= read and spans:
            spans[-1][1] = event  # of the same batch
        else:
            spans.append([max(previous, read), event])
        previous = event
    return spans


def _svg(height: float, title: str, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" font-family="system-ui, sans-serif" font-size="13">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="100%" height="100%" rx="6" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, *, color: str = INK, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


def _line(x: float, y: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{x2:.1f} {y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def _circle(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{color}"/>'


def _rect(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>'


def figures() -> dict[Path, str]:
    """Return the text of each figure, by its file."""
    return {
        IMAGES / "results.svg": results_svg(json.loads(LOADS.read_text("utf-8"))),
        IMAGES / "timeline.svg": timeline_svg(json.loads(TIMELINE.read_text("utf-8"))),
    }


def main() -> None:
    """Draw the figures, the timeline after a new measurement if one is asked for."""
    parser = argparse.ArgumentParser(description="Draws the figures of the pages from benchmarks/results.")
    parser.add_argument("--record", metavar="FOLDER", type=Path, help="measure the load of the timeline first")
    folder = parser.parse_args().record
    if folder is not None:
        TIMELINE.write_text(json.dumps(record(folder), indent=1) + "\n")
    for path, text in figures().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
