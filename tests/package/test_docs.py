"""What the documentation shows runs as written, and names what exists."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import fastassign
from fastassign.catalog.policy import RULES
from fastassign.cli import app

ROOT = Path(__file__).parents[2]
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
    names = {"fa": fastassign, "model": model, "path": path, "build": lambda: keras.models.clone_model(model)}
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


def test_python_of_load_model_runs(tmp_path, monkeypatch, capsys):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save("model.h5")
    names = {"MyLayer": keras.layers.Layer, "build": lambda: keras.models.load_model("model.h5"), "path": "model.h5"}
    blocks = blocks_of("load_model")
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "load_model.md", "exec"), names)
    assert "2 variables" in capsys.readouterr().out


def blocks_of(page, language="python"):
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


RECIPES = blocks_of("recipes")


@pytest.fixture(params=["keras", "tf_keras"])
def trained(request, tmp_path, monkeypatch):
    """The models and files that the recipes speak of."""
    from support.differential import fill, save

    k = pytest.importorskip(request.param)
    monkeypatch.chdir(tmp_path)

    def backbone(name):
        inputs = k.Input((4,))
        x = k.layers.BatchNormalization(name="norm")(k.layers.Dense(4, name="low")(inputs))
        return k.Model(inputs, k.layers.Dense(4, name="high")(x), name=name)

    def larger(units, name="backbone"):
        inputs = k.Input((4,))
        return k.Model(inputs, k.layers.Dense(units, name="head")(backbone(name)(inputs)), name="larger")

    source = fill(larger(5))
    for name in ("trained", "backbone"):
        for suffix in (".h5", ".weights.h5"):
            save(source if name == "trained" else source.get_layer("backbone"), tmp_path / f"{name}{suffix}")
    names = {"model": larger(2), "renamed": larger(2, "encoder"), "backbone": backbone("backbone")}
    return names, source.get_layer("backbone").get_weights()


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_recipes(number, trained, capsys):
    """Each load of each recipe fills all of the backbone, and nothing else."""
    models, wanted = trained
    head = models["model"].get_layer("head").get_weights()
    loads = re.findall(r"fa\.load_weights\((\w+)", RECIPES[number])

    def load_weights(model, *arguments, **options):
        backbones = [part for part in model._flatten_layers() if part.name in {"backbone", "encoder"}]
        backbones[0].set_weights([np.full(value.shape, 0.5) for value in wanted])
        report = fastassign.load_weights(model, *arguments, **options)
        assert all(map(np.array_equal, backbones[0].get_weights(), wanted)) and report.assigned == len(wanted)
        loads.pop(0)
        return report

    tool = SimpleNamespace(load_weights=load_weights, LoadOptions=fastassign.LoadOptions, Mismatch=fastassign.Mismatch)
    exec(compile(RECIPES[number], "recipes.md", "exec"), {"fa": tool, **models})
    assert len(loads) == RECIPES[number].count("except")
    assert all(map(np.array_equal, models["model"].get_layer("head").get_weights(), head))
    if "print" in RECIPES[number]:
        assert [capsys.readouterr().out] == blocks_of("recipes", "text")


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
