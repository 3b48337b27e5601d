"""`bmt-train eval --like`: a run's own evaluation, repeated from its mask's metadata."""

from __future__ import annotations

import dataclasses
import json

import bmt_core
import pytest
from bmt_trainer.cli import repeat
from bmt_trainer.cli.main import app
from bmt_trainer.errors import ConfigError
from typer.testing import CliRunner

ROWS = [{"prompt": f"Say the number {n}.", "completion": "ab"[n % 2]} for n in range(23)]


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    """A folder with a data set and the mask of a run with settings of its own."""
    root = tmp_path_factory.mktemp("repeated")
    (root / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    # A grader by which random answers differ.
    (root / "g.py").write_text("def f(completion, answer):\n    return len(completion) % 2\n")
    arguments = ["sft", "--model", str(checkpoint), "--dataset", str(root / "rows.jsonl")]
    arguments += ["--output", str(root / "m.bmt"), "--heldout-share", "0.3", "--seed", "3"]
    arguments += ["--system", "Be brief.", "--max-new-tokens", "6", "--eval-batch-size", "3"]
    arguments += ["--grader", f"{root / 'g.py'}:f", "--steps", "2", "--batch-size", "2"]
    arguments += ["--learning-rate", "0.02", "--device", "cpu", "--calibration-prompts", "4"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return root


def evaluated(checkpoint, mask, *more):
    arguments = ["eval", "--model", str(checkpoint), "--like", str(mask), "--device", "cpu"]
    return CliRunner().invoke(app, [*arguments, "--json", *more])


@pytest.mark.found
def test_the_score_of_the_run_comes_again(checkpoint, trained):
    metadata = bmt_core.load(trained / "m.bmt").metadata
    assert metadata["evaluation"]["engine"] == "transformers"
    assert metadata["evaluation"]["batch_size"] == 3
    done = evaluated(checkpoint, trained / "m.bmt")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1]) == dict(metadata["scores"]["mask"])
    assert metadata["scores"]["mask"]["total"] == 7
    exact = metadata["scores"]["mask"]["exact"]
    assert f"the run scored {exact} of 7, here {exact} of 7" in done.stderr
    assert "warning" not in done.stderr


def test_options_change_it_and_other_data_is_said(checkpoint, trained, tmp_path):
    done = evaluated(checkpoint, trained / "m.bmt", "--heldout", "4")
    assert json.loads(done.stdout.splitlines()[-1])["total"] == 4
    assert "the held-out examples are not those of" in done.stderr
    rows = (trained / "rows.jsonl").read_text().replace("Say the", "Tell the")
    (tmp_path / "rows.jsonl").write_text(rows)
    done = evaluated(checkpoint, trained / "m.bmt", "--dataset", str(tmp_path / "rows.jsonl"))
    assert "the held-out examples are not those of" in done.stderr
    done = CliRunner().invoke(app, ["eval", "--model", str(checkpoint)])
    assert isinstance(done.exception, ConfigError)
    assert "--like" in str(done.exception)


@pytest.mark.found
def test_a_data_set_that_is_given_replaces_the_one_that_the_run_held_out_from(
    checkpoint, trained, tmp_path
):
    config = {"dataset": "d", "heldout_dataset": str(trained / "other.jsonl"), "heldout": 5}
    mask = dataclasses.replace(bmt_core.load(trained / "m.bmt"), metadata={"config": config})
    bmt_core.save(mask, tmp_path / "x.bmt")
    given = ("--dataset", str(trained / "rows.jsonl"), "--max-new-tokens", "2")
    done = evaluated(checkpoint, tmp_path / "x.bmt", *given)
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout.splitlines()[-1])["total"] == 5
    # Both are given: the second is the one that is scored.
    named = ("--heldout-dataset", str(trained / "other.jsonl"))
    done = evaluated(checkpoint, tmp_path / "x.bmt", *given, *named)
    assert "other.jsonl" in str(done.exception)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "does not name the settings"),
        ({"config": {"dataset": "d", "heldout": 0}}, "held nothing out"),
        ({"method": "dpo", "config": {"dataset": "d", "heldout": 2}}, "of dpo, which scores rows"),
        ({"config": {"dataset": "d", "heldout": 2, "tools": "t.py:f"}}, "several turns"),
    ],
)
def test_evaluations_that_cannot_be_repeated_are_refused(trained, tmp_path, metadata, words):
    mask = dataclasses.replace(bmt_core.load(trained / "m.bmt"), metadata=metadata)
    bmt_core.save(mask, tmp_path / "x.bmt")
    with pytest.raises(ConfigError, match=words):
        repeat.of_mask(tmp_path / "x.bmt")


def test_masks_of_older_builds_are_repeated_without_a_comparison(trained, tmp_path):
    config = {"dataset": "d", "heldout": 2, "reward": "number", "reading": "lenient"}
    mask = dataclasses.replace(bmt_core.load(trained / "m.bmt"), metadata={"config": config})
    bmt_core.save(mask, tmp_path / "x.bmt")
    found = repeat.of_mask(tmp_path / "x.bmt")
    assert found.options == {
        **{"dataset": "d", "heldout": 2, "grader": "number", "reading": "lenient"}
    }
    assert "no score" in repeat.compared(found, 1, 2, "vllm", 4)
    scored = dataclasses.replace(found, score={"exact": 2, "total": 2})
    assert "vllm, batches of 4" in repeat.compared(scored, 1, 2, "vllm", 4)
