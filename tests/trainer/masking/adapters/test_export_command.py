"""Command `export`: both forms, and `apply` as one of them."""

from __future__ import annotations

import json

import bmt_core
import pytest
from bmt_core import Base
from bmt_trainer.cli import main
from bmt_trainer.errors import ConfigError
from typer.testing import CliRunner

from tests.support.masks import random_mask


@pytest.fixture
def mask(checkpoint, tmp_path):
    base = Base("org/tiny", bmt_core.fingerprint(checkpoint))
    bmt_core.save(
        random_mask(bmt_core.geometry(checkpoint), sparsity=0.01, base=base), tmp_path / "m.bmt"
    )
    return tmp_path / "m.bmt"


def run(*words):
    return CliRunner().invoke(main.app, [str(word) for word in words])


def test_apply_is_export_to_a_checkpoint(mask, checkpoint, tmp_path):
    common = [mask, "--model", checkpoint, "--output"]
    done = run("export", *common, tmp_path / "a", "--to", "checkpoint")
    assert done.exit_code == 0, done.output
    assert run("apply", *common, tmp_path / "b").exit_code == 0
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}


def test_export_to_peft(mask, checkpoint, tmp_path):
    words = ["export", mask, "--model", checkpoint, "--output", tmp_path / "a", "--to", "peft"]
    found = run(*words, "--chat-template", "tools")
    assert isinstance(found.exception, ConfigError)
    assert not (tmp_path / "a").exists()
    done = run(*words)
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    # A folder is of this machine; the name that the mask has is not.
    assert config["base_model_name_or_path"] == "org/tiny"


def test_a_form_must_be_chosen(mask, checkpoint, tmp_path):
    words = ["export", mask, "--model", checkpoint, "--output", tmp_path / "a"]
    assert run(*words).exit_code == 2
    assert run(*words, "--to", "gguf").exit_code == 2
