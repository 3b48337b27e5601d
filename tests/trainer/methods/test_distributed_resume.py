"""Two processes under FSDP2 that are killed, and resume to the mask of an undisturbed run."""

from __future__ import annotations

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
    on_policy = {**common, "validation": 2, "validate_every": 3, "prompts_per_step": 4}
    of_method = {
        "sft": {**common, "batch_size": 2},
        "grpo": {**on_policy, "completions": 4, "micro_batch": 4, "reward": f"{reward}:odd"},
        "sdft": {**on_policy, "micro_batch": 2, "skip_tokens": 0},
    }
    return of_method.__getitem__


@pytest.mark.parametrize("method", ["sft", "grpo", "sdft"])
def test_a_run_that_is_killed_and_resumed_gives_the_same_mask(settings, tmp_path, method):
    whole = RankedRun(method, settings(method), tmp_path / "whole")
    digest = whole.finish()
    killed = RankedRun(method, settings(method), tmp_path / "killed")
    assert set(killed.strike(signal.SIGKILL, 4)) == {-signal.SIGKILL}
    assert killed.finish("--resume") == digest
    assert "resuming at step" in killed.log
    assert killed.losses() == whole.losses()
    assert len(set(whole.losses())) > 1, "a run that learns nothing would prove nothing"
