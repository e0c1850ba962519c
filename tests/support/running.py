"""Plans carried out with another runtime than the process has: on storage that fails, on a driver that is not there."""

from dataclasses import replace

from fastassign import runtime


def with_source(plan, make_source):
    """Return a plan that is read by what ``make_source`` makes of its source."""
    return replace(plan, runtime=replace(plan.runtime, make_source=make_source))


def set_runtime(monkeypatch, **parts):
    """Replace parts of the runtime of the process, until the test ends."""
    monkeypatch.setattr(runtime, "_PROCESS", replace(runtime.process_runtime(), **parts))
