"""What the documentation shows runs as written, and names what exists."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import fastassign
from fastassign.catalog.policy import RULES
from fastassign.cli import app

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
COMMANDS = "\n".join(re.findall(r"```\n(fastassign .*?)```", USAGE, flags=re.DOTALL))
BLOCKS = re.findall(r"```python\n(.*?)```", README + USAGE, flags=re.DOTALL)
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_of_readme_and_usage_runs(number, tmp_path, monkeypatch, capsys):
    keras = pytest.importorskip("keras")
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    path = tmp_path / ("model.h5" if "by_name" in BLOCKS[number] else "model.weights.h5")
    (model.save if path.name == "model.h5" else model.save_weights)(path)
    names = {"fa": fastassign, "model": model, "path": path, "build": lambda: keras.models.clone_model(model)}
    exec(compile(BLOCKS[number], "README.md or usage.md", "exec"), names)
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


def test_there_is_python_in_readme_and_usage():
    assert [text.count("```python") for text in (README, USAGE)] == [1, 1]


def test_commands_of_the_usage_page_exist():
    shown = set(re.findall(r"^fastassign (\w+)", COMMANDS, flags=re.MULTILINE))
    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert shown == known


def test_options_of_the_usage_page_exist():
    for command, options in re.findall(r"^fastassign (\w+)(.*)$", COMMANDS, flags=re.MULTILINE):
        text = CliRunner().invoke(app, [command, "--help"], env={"TERM": "dumb", "COLUMNS": "200"}).stdout
        for option in re.findall(r"--[a-z-]+", options):
            assert option in text


def test_every_rule_of_the_policy_is_documented():
    policy = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert f"`{rule}`" in policy


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                there = page.parent / target if target else page
                assert there.exists(), f"{page.name} links to {target}"
                assert not anchor or anchor in anchors_of(there), f"{page.name} links to {target}#{anchor}"


def anchors_of(page):
    """Return the anchors that a repository browser and the site both make of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}


def test_tables_of_loads_are_the_committed_figures():
    performance = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    comparisons = json.loads((RESULTS / "2-cores-xeon.json").read_text())["comparisons"]
    assert len(comparisons) == 7
    for found in comparisons:
        size = f"{found['nbytes'] / 1e6:,.0f} MB / {found['tensors']:,}"
        seconds = f"{found['stock']:.2f} s | {found['first'] * 1e3:.0f} ms | {found['cached'] * 1e3:.0f} ms"
        ratios = f"{found['stock_over_first']:.1f}; {found['stock_over_cached']:.1f}"
        fresh, warm = (f"{found[f'share_of_{limit}_limit']:.0%}" for limit in ("fresh", "warm"))
        assert f"| {found['case']} | {size} | {seconds} | {ratios} | {warm} |" in README
        assert f"| {found['case']} | {seconds} | {ratios} | {fresh}; {warm} |" in performance


def test_figures_are_drawn_from_the_committed_measurements():
    drawn = runpy.run_path(str(ROOT / "docs" / "figures.py"))["figures"]()
    assert len(drawn) == 2
    for path, text in drawn.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `make figures`"


def test_every_measurement_is_linked_from_the_performance_page():
    performance = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for path in RESULTS.glob("*.json"):
        assert f"(../benchmarks/results/{path.name})" in performance


def test_public_names_are_what_init_says():
    for name in fastassign.__all__:
        assert getattr(fastassign, name) is not None


def repository():
    """Return the text files of the repository, but for the pages about Keras and TensorFlow and this test."""
    suffixes = {".md", ".py", ".toml", ".yml", ".yaml", ".txt", ".c"}
    tops = ("fastassign", "kernels", "benchmarks", "tests", "docs", "examples", ".github")
    inside = (path for top in tops for path in (ROOT / top).rglob("*") if path.suffix in suffixes)
    at_root = (path for path in ROOT.glob("*") if path.suffix in suffixes or path.name == "Makefile")
    own = {Path(__file__).resolve()}
    for path in (*at_root, *inside):
        if path.parent.name != "internals" and path.resolve() not in own:
            yield path, path.read_text(encoding="utf-8")


def test_nothing_cites_a_page_that_is_not_in_the_repository():
    # The folder of real files is named where there is one beside the project; nothing is read there.
    strange = re.compile(r"\bfacts?[,:/]|\.\./shared(?!/corpus)|keras_semantics|tf_internals")
    for path, text in repository():
        found = strange.search(text)
        assert found is None, f"{path.relative_to(ROOT)} cites {found.group(0)!r}"


def test_references_to_keras_and_tensorflow_pages_lead_somewhere():
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "internals").glob("*.md")}
    reference = re.compile(r"docs/internals/([\w.]+?\.md)(?:\W+(?:sections?|bug|row)?\s*(B?[\d.]*\d))?")
    for path, text in repository():
        for name, number in reference.findall(text.replace("#", " ")):
            assert name in pages, f"{path.relative_to(ROOT)} refers to docs/internals/{name}"
            assert not number or found_in(pages[name], number), f"{path.relative_to(ROOT)}: {name} has no {number}"


def test_bugs_and_rows_that_tests_refer_to_are_listed():
    page = (ROOT / "docs" / "internals" / "keras.md").read_text(encoding="utf-8")
    for path, text in repository():
        if "tests" in path.relative_to(ROOT).parts:
            # "rows 1 to 4", "rows 59, 60", "row 49, bug B6"
            for line in re.findall(r"#.*\brows? (\d+(?:(?:, | to | and )\d+)*)", text):
                for row in re.findall(r"\d+", line):
                    assert f"\n| {row} | " in page, f"{path.relative_to(ROOT)}: no row {row}"
            for bug in re.findall(r"\bbug (B\d+)", text):
                assert f"**{bug}**" in page, f"{path.relative_to(ROOT)}: no bug {bug}"


def found_in(page, number):
    if number.startswith("B"):
        return f"**{number}**" in page
    return re.search(rf"^(#+ {re.escape(number)}\.? |\| {re.escape(number)} \| )", page, flags=re.MULTILINE) is not None
