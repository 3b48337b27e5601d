"""Two processes under FSDP2 that are killed, and resume to the mask of an undisturbed run."""

from __future__ import annotations

import re
import signal

import pytest

from tests.support.training.ranks import RankedRun

pytestmark = pytest.mark.timeout(300)

# Rewards must differ within a group, or the advantages are 0.
REWARD = "def odd(text, answer):\n    return sum(ord(c) % 2 for c in text) / max(1, len(text))\n"


@pytest.fixture
def settings(checkpoint, tmp_path):
    """Settings of a method."""
    reward = tmp_path / "reward.py"
    reward.write_text(REWARD)
    common = {
        "model": checkpoint,
        "dataset": "task:initials",
        "heldout": 4,
        "learning_rate": 0.02,
        "calibration_prompts": 8,
        "max_new_tokens": 4,
        "device": "cpu",
        "checkpoint_every": 2,
        "steps": 8,
    }
    preferences = {**common, "dataset": "task:word-order?least=2&most=3"}
    preferences |= {"batch_size": 2, "validation": 4, "validate_every": 3}
    on_policy = {**common, "validation": 2, "validate_every": 3, "prompts_per_step": 4}
    of_method = {
        "sft": {**common, "batch_size": 2, "validation": 4, "validate_every": 3},
        "dpo": preferences,
        "kto": preferences,
        "grpo": {**on_policy, "completions": 4, "micro_batch": 4, "reward": f"{reward}:odd"},
        "sdft": {**on_policy, "micro_batch": 2, "skip_tokens": 0},
    }
    return of_method.__getitem__


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "grpo", "sdft"])
def test_a_run_that_is_killed_and_resumed_gives_the_same_mask(settings, tmp_path, method):
    whole = RankedRun(method, settings(method), tmp_path / "whole")
    digest = whole.finish()
    killed = RankedRun(method, settings(method), tmp_path / "killed")
    assert set(killed.strike(signal.SIGKILL, 4)) == {-signal.SIGKILL}
    assert killed.finish("--resume") == digest
    assert "resuming at step" in killed.log
    assert killed.losses() == whole.losses()
    assert len(set(whole.losses())) > 1, "a run that learns nothing would prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize("among", [[0], pytest.param([1], marks=pytest.mark.operate)])
def test_a_signal_to_one_process_ends_both_with_a_checkpoint(settings, tmp_path, among):
    of_run = {**settings("sft"), "steps": 40, "checkpoint_every": 30}
    whole = RankedRun("sft", of_run, tmp_path / "whole").finish()
    run = RankedRun("sft", {**of_run, "checkpoint_every": 4}, tmp_path / "run")
    assert run.strike(signal.SIGTERM, 4, among=among) == [143, 143]
    [step] = [int(n) for n in re.findall(r"interrupted; a checkpoint of step (\d+)", run.log)]
    assert run.checkpoints()[-1] == step
    assert "Traceback" not in run.log
    assert run.finish("--resume") == whole


@pytest.mark.operate
def test_a_run_resumes_in_as_many_processes_as_it_began(settings, tmp_path):
    killed = RankedRun("sft", settings("sft"), tmp_path)
    killed.strike(signal.SIGKILL, 2)
    for ranks in (1, 3):
        other = RankedRun("sft", settings("sft"), tmp_path, ranks=ranks)
        assert set(other.end(other.start("--resume"))) == {1}
        # Without a launcher each process says it; a user sees the first one's line.
        *_, line = (tmp_path / "rank-0.txt").read_text().splitlines()
        assert line.startswith("bmt-train: ")
        assert f"was started in 2 processes, not {ranks}" in line
    assert killed.finish("--resume")


@pytest.mark.slow
def test_the_process_that_dies_alone_ends_the_other_in_one_line(settings, tmp_path):
    run = RankedRun("sft", settings("sft"), tmp_path)
    codes = run.strike(signal.SIGKILL, 2, among=[1])
    assert codes == [1, -signal.SIGKILL]
    assert run.log.count("bmt-train: another of 2 processes has ended") == 1
    assert "Traceback" not in run.log
    assert run.finish("--resume")
