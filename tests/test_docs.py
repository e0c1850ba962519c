"""What the documentation shows runs as written, and names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fastassign
from fastassign.catalog.policy import RULES
from fastassign.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = "\n".join(re.findall(r"```\n(fastassign .*?)```", README, flags=re.DOTALL))
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_of_the_readme_runs(number, tmp_path, monkeypatch, capsys):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    path = tmp_path / ("model.h5" if "by_name" in BLOCKS[number] else "model.weights.h5")
    (model.save if path.name == "model.h5" else model.save_weights)(path)
    names = {"fa": fastassign, "model": model, "path": path}
    exec(compile(BLOCKS[number], "README.md", "exec"), names)
    if "report" in names:
        assert names["report"].assigned == len(names["plan"].rows()) == len(names["catalog"]) == 2
    else:
        assert "2 variables" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["loader", "tensorflow1"])
def test_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    for step in (1000, 2000):
        model.save_weights(f"step-{step}.weights.h5")
    names = {"model": model, "inputs": np.ones((1, 4)), "fa": fastassign}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text("utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)


def test_there_is_python_in_the_readme():
    assert len(BLOCKS) == 2


def test_commands_of_the_readme_exist():
    shown = set(re.findall(r"^fastassign (\w+)", COMMANDS, flags=re.MULTILINE))
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert shown == known


def test_options_of_the_readme_exist():
    for command, options in re.findall(r"^fastassign (\w+)(.*)$", COMMANDS, flags=re.MULTILINE):
        text = CliRunner().invoke(app, [command, "--help"], env={"TERM": "dumb", "COLUMNS": "200"}).stdout
        for option in re.findall(r"--[a-z-]+", options):
            assert option in text


def test_every_rule_of_the_policy_is_documented():
    policy = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert f"`{rule}`" in policy


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_public_names_are_what_init_says():
    for name in fastassign.__all__:
        assert getattr(fastassign, name) is not None
