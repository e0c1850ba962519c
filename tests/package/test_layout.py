"""The shape of the house: imports run one way, and TensorFlow stays in two rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fastassign

ROOT = Path(fastassign.__file__).parent

# From the ground up; a module may import from its own floor and from those before.
FLOORS = (
    ("errors", "progress", "report", "text", "gc_pause", "kernels"),
    ("catalog",),
    ("options",),
    ("targets",),
    ("matching",),
    ("planning",),
    ("streaming",),
    ("devices",),
    ("runtime",),
    ("assigning",),
    ("plan",),
    ("pipeline",),
    ("loader",),
    ("verbs",),
    ("architecture",),
    ("patching",),
    ("__init__",),
    ("benchmarks",),
    ("doctor",),
    ("program",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path for path in ROOT.rglob("*.py") if "benchmarks" not in path.parts)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = FLOOR[room_of(path)]
    for module, names in imports(path):
        parts = module.split(".")
        if parts[0] != "fastassign":
            continue
        rooms = parts[1:2] or [name for name in names if name in FLOOR] or ["__init__"]
        for room in rooms:
            assert FLOOR[room] <= own, f"{path.name} is on floor {own}, {module} on {FLOOR[room]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tensorflow_stays_in_its_rooms(path):
    if room_of(path) in {"targets", "assigning", "architecture", "cli", "doctor"}:
        return
    for module, _ in imports(path):
        assert module.split(".")[0] not in {"tensorflow", "keras", "tf_keras"}


def test_every_module_is_on_a_floor():
    assert {room_of(path) for path in MODULES} <= FLOOR.keys()


SUPPORT = sorted((Path(__file__).parents[1] / "support").glob("*.py"))


@pytest.mark.parametrize("path", SUPPORT, ids=lambda path: path.name)
def test_support_knows_no_tests(path):
    """Tests import from ``support``, and it from nobody's tests: all that it imports is installed, or its own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path.name}: import it as `support`"
    own = {path.stem for path in SUPPORT}
    for module, names in imports(path):
        parts = module.split(".")
        assert not any(part.startswith("test_") or part in {"tests", "conftest"} for part in (*parts, *names)), module
        if parts[0] == "support":
            assert set(parts[1:2] or names) <= own, module


TESTS = sorted((Path(__file__).parents[1]).rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: "/".join(path.parts[-2:]))
def test_tests_know_no_other_tests(path):
    for module, _ in imports(path):
        assert not any(part.startswith("test_") or part in {"tests", "conftest"} for part in module.split(".")), module
