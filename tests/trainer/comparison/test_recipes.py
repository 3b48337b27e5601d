"""Recipes: those of the repository's trainers, and files of several comparisons."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from bmt_trainer.cli import main
from bmt_trainer.comparison import plan, recipe
from bmt_trainer.comparison.plan import CONFIGS
from bmt_trainer.errors import ConfigError
from bmt_trainer.settings import build, read_yaml

ROOT = Path(__file__).resolve().parents[3]
SEVERAL = {
    "about": "Two of a kind",
    "shared": {"trainer": "sft", "model": "m", "dataset": "task:initials", "steps": 7},
    "comparisons": {
        "first": {"about": "the one", "methods": ["base", "bmt"]},
        "second": {"methods": "full", "steps": 9, "dataset": "task:arithmetic"},
    },
}


@pytest.fixture
def several(tmp_path):
    """A file of two comparisons."""
    path = tmp_path / "several.yaml"
    path.write_text(yaml.safe_dump(SEVERAL))
    return path


def test_the_trainers_own_recipes_are_valid_settings():
    for path in (ROOT / "recipes").glob("*.yaml"):
        kind = CONFIGS.get(path.stem.partition("-")[0])
        if kind is None:
            continue
        values = {"dataset": "d", **read_yaml(path), "model": "m", "output": "o.bmt"}
        assert build(kind, values)


def test_a_comparison_of_several_is_chosen_by_name(several):
    def cells(name):
        made = plan.read(several, {"output": "x"}, name)
        return [(c.method, c.model, c.dataset, c.config().steps) for c in made.cells()]

    assert cells("first") == [
        ("base", "m", "task:initials", 7),
        ("bmt", "m", "task:initials", 7),
    ]
    assert cells("second") == [("full", "m", "task:arithmetic", 9)]
    assert recipe.descriptions(several) == {"first": "the one", "second": ""}
    for name in (None, "third"):
        with pytest.raises(ConfigError, match="choose one of first, second"):
            cells(name)


def test_a_file_of_one_needs_no_name(several):
    alone = {**SEVERAL, "comparisons": {"first": SEVERAL["comparisons"]["first"]}}
    several.write_text(yaml.safe_dump(alone))
    assert plan.read(several, {"output": "x"}).settings["steps"] == 7
    several.write_text("trainer: sft\nmodel: m\nmethods: base\ndataset: task:initials\n")
    assert plan.read(several, {"output": "x"}).methods == ["base"]
    with pytest.raises(ConfigError, match="leave 'first' out"):
        plan.read(several, {"output": "x"}, "first")


def test_parts_extend_files_of_one_comparison(several, tmp_path):
    (tmp_path / "base.yaml").write_text("steps: 3\nbatch_size: 5\n")
    values = json.loads(json.dumps(SEVERAL))
    values["shared"]["extends"] = "base.yaml"
    several.write_text(yaml.safe_dump(values))
    assert plan.read(several, {"output": "x"}, "first").settings == {"steps": 7, "batch_size": 5}
    # What a comparison inherits goes over what all share.
    values["comparisons"]["first"]["extends"] = "base.yaml"
    several.write_text(yaml.safe_dump(values))
    assert plan.read(several, {"output": "x"}, "first").settings["steps"] == 3
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(SEVERAL))
    with pytest.raises(ConfigError, match="which has several comparisons"):
        plan.read(several, {"output": "x"}, "first")
    (tmp_path / "base.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        plan.read(several, {"output": "x"}, "first")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "several.yaml"], "choose one of first, second"),
        (["--config", "several.yaml", "--comparison", "third"], "no comparison 'third'"),
        (["--comparison", "first"], "name the recipe by --config"),
    ],
)
def test_the_commands_comparison(several, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bmt-train", "compare", "--output", "out", *arguments])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert words in capsys.readouterr().err
