"""Notes of an interrupted run."""

from __future__ import annotations

import json

import pytest
from bmt_trainer.errors import ResumeError
from bmt_trainer.methods.run_folder import RunFolder


def test_a_run_that_was_killed_while_its_folder_was_removed_leaves_nothing(tmp_path):
    left = tmp_path / ".m.bmt.run.done" / "checkpoint-2"
    left.mkdir(parents=True)
    run = RunFolder(tmp_path / "m.bmt", {"seed": 1}, resume=False)
    run.finish()
    assert not list(tmp_path.iterdir())


def test_notes_of_a_build_before_0_1_are_read(tmp_path):
    output = tmp_path / "m.bmt"
    run = RunFolder(output, {"seed": 1}, resume=False)
    (run.folder / "run.json").write_text(
        json.dumps({"settings": {"seed": 1}, "notes": {"init_density": 0.25}})
    )
    assert RunFolder(output, {"seed": 1}, resume=True).notes == {"init_sparsity": 0.25}


@pytest.mark.parametrize("resume", [True, False])
def test_the_name_on_a_server_outlives_a_run_that_was_killed_before_a_checkpoint(tmp_path, resume):
    output = tmp_path / "m.bmt"
    run = RunFolder(output, {"seed": 1}, resume=False)
    run.note("rollout_name", "rollout-1")
    run.note("base", {"exact": 1})
    again = RunFolder(output, {"seed": 1}, resume=resume)
    assert again.notes["rollout_name"] == "rollout-1"
    assert ("base" in again.notes) == resume


def test_a_resumed_run_may_have_its_rollouts_elsewhere(tmp_path):
    output, said = tmp_path / "m.bmt", []
    RunFolder(output, {"seed": 1, "server": "http://a"}, resume=False)
    RunFolder(output, {"seed": 1, "server": None}, resume=True, say=said.append)
    assert said == ["server: None from here on, http://a before"]
    with pytest.raises(ResumeError, match="seed"):
        RunFolder(output, {"seed": 2, "server": None}, resume=True)
