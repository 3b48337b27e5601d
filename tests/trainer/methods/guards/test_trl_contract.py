"""The check of TRL before a run: all private parts that training uses, by name."""

from __future__ import annotations

import ast
import importlib.metadata
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from bmt_core.library_contract import broken
from bmt_trainer.cli import train as commands
from bmt_trainer.errors import LibraryError
from bmt_trainer.methods.guards import trl_contract
from bmt_trainer.methods.guards.trl_contract import SEAMS, SUPPORTED, TESTED, check_trl
from trl import GRPOTrainer
from trl.experimental.sdft import SDFTTrainer

ROOT = Path(__file__).resolve().parents[4]
TRAINER = ROOT / "trainer" / "bmt_trainer"


@pytest.fixture(autouse=True)
def fresh():
    trl_contract._broken.cache_clear()
    yield
    trl_contract._broken.cache_clear()


@pytest.fixture
def pretend(monkeypatch):
    """pretend(version): the installed TRL says that it is another version."""
    known = importlib.metadata.version
    return lambda version: monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == "trl" else known(name)
    )


def test_the_installed_trl_keeps_the_contract():
    lines: list[str] = []
    check_trl(lines.append)
    assert lines == []


def test_every_seam_can_be_missed():
    """Each row asks for something that its target can lack."""
    for seam in SEAMS:
        if seam.attributes:
            assert broken([replace(seam, attributes=(*seam.attributes, "bmt_absent"))]), seam
        if (names := seam.exactly or seam.accepts) is not None:
            assert broken([replace(seam, exactly=(*names, "bmt_absent"))]), seam
        assert broken([replace(seam, target=seam.target + "_bmt_absent")]), seam


def test_missing_hooks_are_named_in_one_line(monkeypatch):
    def tokenize(self, prompts, images): ...

    monkeypatch.delattr(SDFTTrainer, "_setup_teacher_model")
    monkeypatch.setattr(GRPOTrainer, "_tokenize_prompts", tokenize)
    with pytest.raises(LibraryError) as caught:
        check_trl(print)
    line = str(caught.value)
    assert "\n" not in line
    assert (
        "GRPOTrainer._tokenize_prompts takes (self, prompts, images), not (self, prompts)" in line
    )
    assert "no SDFTTrainer._setup_teacher_model" in line
    assert f"trl{SUPPORTED}" in line


def test_an_older_trl_is_refused_by_name(pretend):
    pretend("1.15.0")
    with pytest.raises(LibraryError, match=r"TRL is 1\.15\.0, and training needs 1\.16"):
        check_trl(print)


def test_a_newer_trl_that_keeps_the_contract_is_used_with_one_warning(pretend):
    pretend("1.17.2")
    lines: list[str] = []
    check_trl(lines.append)
    (line,) = lines
    assert "TRL 1.17.2 is not among the tested versions (1.16)" in line


def test_commands_check_before_they_import_a_trainer(monkeypatch):
    monkeypatch.delattr(GRPOTrainer, "_generate_and_score_completions")
    for command in (commands.sft, commands.dpo, commands.kto, commands.grpo, commands.sdft):
        with pytest.raises(LibraryError, match="no GRPOTrainer"):
            command(None)


def test_the_requirement_is_the_supported_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"trl{SUPPORTED}" in project["optional-dependencies"]["trainer"]
    assert SUPPORTED.startswith(f">={TESTED[0][0]}.{TESTED[0][1]},")
    assert importlib.metadata.version("trl").startswith(f"{TESTED[-1][0]}.{TESTED[-1][1]}.")


def test_each_import_from_trl_is_in_the_table():
    """Also of the next module that imports one."""
    known = {s.target.partition(".__init__")[0] for s in SEAMS}
    # Both names of a class count: where it is defined, and where it is public.
    known |= {f"trl:{name.rpartition(':')[2]}" for name in known}
    known |= {f"trl.experimental.sdft:{name.rpartition(':')[2]}" for name in known}
    missing = [
        f"{path.relative_to(TRAINER)}: {node.module}:{alias.name}"
        for path in sorted(TRAINER.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "trl"
        for alias in node.names
        if f"{node.module}:{alias.name}" not in known | {"trl.trainer:utils"}
    ]
    assert missing == []


def test_the_table_names_files_of_this_package():
    assert [s.used_by for s in SEAMS if not (TRAINER / s.used_by).is_file()] == []
