"""The public names, their docstrings and the documentation say the same."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastassign
from fastassign import errors
from fastassign.text import clipped, fields, table, wrapped

ROOT = Path(__file__).parents[2]
PAGES = "\n".join(page.read_text("utf-8") for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))))

PUBLIC = {name: getattr(fastassign, name) for name in fastassign.__all__}
ERRORS = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and value.__module__ == errors.__name__
}
FUNCTIONS = {"load_weights", "plan", "Loader", "load_model", "assign", "inspect"}


def documented():
    """Yield the name of everything public that has a docstring, and the docstring: functions, classes and methods."""
    for name, value in PUBLIC.items():
        if inspect.getdoc(value):
            yield name, inspect.getdoc(value)
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            if not attribute.startswith("_") and inspect.isroutine(member) and member.__doc__:
                yield f"{name}.{attribute}", inspect.getdoc(member)


DOCUMENTED = dict(documented())


def section_of(text, title):
    """Return the lines of a section of a numpydoc docstring, indented ones as they are."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-{{3,}}$|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    return found.group(1).splitlines() if found else []


def entries_of(text, title):
    """Return the entries of a section, each with its description."""
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in section_of(text, title):
        if line and not line.startswith(" "):
            names = [name.strip() for name in re.sub(r"\(.*?\)|:.*", "", line).split(",")]
            entries.update(dict.fromkeys(names, ""))
        else:
            for name in names:
                entries[name] += f"{line.strip()} "
    return entries


RAISES = {name: entries_of(text, "Raises") for name, text in DOCUMENTED.items() if section_of(text, "Raises")}


def test_raises_sections_are_found():
    assert {"load_weights", "plan", "inspect", "assign", "load_model", "Loader.load", "Plan.execute"} <= RAISES.keys()
    assert {"NotFound", "Denied", "NotAFile", "Malformed", "Truncated"} <= RAISES["load_weights"].keys()


@pytest.mark.parametrize("name", RAISES)
def test_documented_errors_are_builtins_or_public(name):
    for error in RAISES[name]:
        kind = PUBLIC.get(error, getattr(builtins, error, None))
        assert isinstance(kind, type) and issubclass(kind, BaseException), f"{name} documents {error}"


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_public_and_documented(name):
    assert PUBLIC[name] is ERRORS[name]
    assert name in errors.__all__
    assert re.search(rf"`(fastassign\.)?{name}`", PAGES)
    assert issubclass(ERRORS[name], fastassign.FastAssignError)
    assert name == "FastAssignError" or any(base.__module__ == "builtins" for base in ERRORS[name].__mro__[1:-3])


@pytest.mark.parametrize("name", sorted(ERRORS.keys() - {"FastAssignError"}))
def test_the_page_of_errors_names_the_builtin(name):
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    (builtin,) = re.findall(rf"^\| `{name}` \| `(\w+)` \|", page, flags=re.MULTILINE)
    assert issubclass(ERRORS[name], getattr(builtins, builtin))


def test_pages_name_no_error_that_does_not_exist():
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([A-Z]\w+)` \|", page, flags=re.MULTILINE)) == ERRORS.keys() - {"FastAssignError"}


@pytest.mark.parametrize("module", ["fastassign", "fastassign.errors"])
def test_exports_are_sorted_and_exist(module):
    exported = importlib.import_module(module)
    assert exported.__all__ == sorted(exported.__all__)
    assert all(getattr(exported, name) is not None for name in exported.__all__)


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if dataclasses.is_dataclass(value)])
def test_every_field_is_documented(name):
    entries = entries_of(inspect.getdoc(PUBLIC[name]), "Attributes")
    expected = {field.name for field in dataclasses.fields(PUBLIC[name])}
    assert expected <= entries.keys()
    assert all(entries[field].strip() for field in expected)


def test_every_option_says_which_function_it_is_for():
    entries = entries_of(inspect.getdoc(fastassign.LoadOptions), "Attributes")
    for field in dataclasses.fields(fastassign.LoadOptions):
        (scope,) = re.findall(r"^``\[([\w, ]+)\]`` ", entries[field.name])
        assert {word.strip() for word in scope.split(",")} <= FUNCTIONS | {"loads"}, field.name


def test_every_function_has_parameters_documented():
    for name, value in PUBLIC.items():
        if inspect.isfunction(value):
            known = entries_of(inspect.getdoc(value), "Parameters").keys()
            missing = inspect.signature(value).parameters.keys() - known
            assert not missing or name == "plan", f"{name} does not document {missing}"


def test_the_version_stands_in_one_place():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert not re.search(r"^version = \"", project, flags=re.MULTILINE)
    assert 'version = { attr = "fastassign.__version__" }' in project
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", fastassign.__version__)


def test_the_version_is_printed():
    command = [sys.executable, "-m", "fastassign", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"fastassign {fastassign.__version__}\n"


class TestText:
    @pytest.mark.parametrize("width", [5, 20, 31, 32])
    def test_names_are_clipped_in_the_middle(self, width):
        name = "encoder/block_1/attention/kernel"
        short = clipped(name, width)
        assert len(short) == min(width, len(name))
        assert width == 32 or (short[0], short[-1]) == ("e", "l")

    def test_tables_fit(self):
        rows = [("a/" * 60, "(1, 2)", "x" * 70), ("short", "(3,)", "")]
        lines = table(("name", "shape", "from"), rows, width=60).splitlines()
        assert max(map(len, lines)) <= 60
        assert "(1, 2)" in lines[1] and lines[2].split() == ["short", "(3,)"]

    def test_small_tables_take_what_they_need(self):
        assert table(("a", "b"), [("1", "22")], right={1}) == "a   b\n1  22"

    def test_fields_are_wrapped_and_names_stand_once(self):
        text = fields([("cast", ["one two three four five six", "seven"]), ("rate", ["1"])], width=30)
        assert text.splitlines() == ["cast  one two three four five", "          six", "      seven", "rate  1"]

    def test_control_characters_are_not_printed(self):
        assert "\x1b" not in table(("a",), [("\x1b[2J",)]) + "".join(wrapped("\x1b[2J x", 30))

    def test_the_terminal_decides(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "50")
        assert max(map(len, table(("a",), [("x" * 100,)]).splitlines())) == 50
