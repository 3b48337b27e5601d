"""Notes of an interrupted run."""

from __future__ import annotations

import json

import pytest
from bmt_trainer.errors import ResumeError
from bmt_trainer.methods.guards.checkpoints import write_manifest
from bmt_trainer.methods.run_folder import RunFolder, is_writing


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
    assert said == ["server: none from here on, http://a before"]
    with pytest.raises(ResumeError, match="seed"):
        RunFolder(output, {"seed": 2, "server": None}, resume=True)


@pytest.mark.found
def test_another_text_of_a_reward_is_accepted_by_a_setting_and_noted(tmp_path):
    """Such as other retries of a judge; what is not code stays as it was."""
    output, said = tmp_path / "m.bmt", []
    run = RunFolder(output, {"reward": "judge:u?retries=2", "seed": 1}, resume=False)
    run.note("base", {"mean": 1})
    run.note("validation", [{"step": 1, "mean": 1.0}, {"step": 1, "loss": 1.0}])
    (run.folder / "checkpoint-2").mkdir()
    (run.folder / "checkpoint-2" / "f").touch()
    write_manifest(run.folder / "checkpoint-2")
    now = {"reward": "judge:u?retries=9", "seed": 1}
    with pytest.raises(ResumeError, match=r"reward = .*retries=2.*--accept-changes"):
        RunFolder(output, now, resume=True)
    with pytest.raises(ResumeError, match="seed = 1, not 2; use its settings, or remove it"):
        RunFolder(output, {**now, "seed": 2}, resume=True, accept_changes=True)
    notes = RunFolder(output, now, resume=True, accept_changes=True, say=said.append).notes
    assert notes["changes"] == [{"changed": ["reward"], "after_step": 2}]
    assert (notes.get("base"), notes["validation"]) == (None, [{"step": 1, "loss": 1.0}])
    assert "reward: changed after step 2" in said[0]
    assert RunFolder(output, now, resume=True).notes == notes  # it is the run's own now


@pytest.mark.found
def test_rollouts_that_move_back_have_the_name_of_the_default(tmp_path):
    """A run's folder leaves the default out."""
    output, said = tmp_path / "m.bmt", []
    RunFolder(output, {"rollouts": "vllm"}, resume=False)
    RunFolder(output, {}, resume=True, say=said.append)
    # As builds have written it for sdft.
    RunFolder(output, {"rollouts": "transformers"}, resume=True, say=said.append)
    assert said == ["rollouts: transformers from here on, vllm before"]


@pytest.mark.found
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"settings": {}, "notes": {}, "contents": {}, "processes": 1e400}',
    ],
)
def test_a_file_that_is_no_runs_is_said_so(tmp_path, text):
    output = tmp_path / "m.bmt"
    run = RunFolder(output, {}, resume=False)
    (run.folder / "run.json").write_text(text)
    assert not is_writing(output)
    with pytest.raises(ResumeError, match="is no run of ours"):
        RunFolder(output, {}, resume=True)


@pytest.mark.found
def test_a_manifest_that_is_too_deep_is_a_damaged_checkpoint(tmp_path):
    output, said = tmp_path / "m.bmt", []
    run = RunFolder(output, {}, resume=False)
    checkpoint = run.folder / "checkpoint-3"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text("[" * 100_000)
    assert RunFolder(output, {}, resume=True, say=said.append).last_checkpoint() is None
    assert "checkpoint-3 is damaged" in said[0]
