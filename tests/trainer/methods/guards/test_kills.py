"""Runs that are killed at random moments and resumed: six of the fifty kills of tests/system."""

from __future__ import annotations

import sys

import pytest

from tests.support.training.kills import KINDS, storm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit(2)")


def settings(checkpoint):
    return {
        "model": checkpoint,
        "dataset": "task:initials",
        "heldout": 8,
        "steps": 40,
        "batch_size": 4,
        "learning_rate": 0.01,
        "calibration_prompts": 8,
        "max_new_tokens": 4,
        "checkpoint_every": 5,
        "device": "cpu",
    }


@pytest.mark.timeout(400)
def test_a_run_that_is_killed_and_resumed_gives_the_same_mask(checkpoint, tmp_path):
    happened = storm("sft", settings(checkpoint), tmp_path, 6, seed=2)
    assert sum(happened[kind] for kind in KINDS) == 6, happened
    assert happened["resumed after step 0"] > 0, happened
