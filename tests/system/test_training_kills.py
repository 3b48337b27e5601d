"""Training that is killed at 50 random moments: each run is resumed, and ends with the same mask.

SIGKILL, SIGTERM, SIGINT, a disk that refuses checkpoints, and the newest checkpoint cut at a random
byte of a random file; SFT, GRPO and SDFT of a tiny model. `make test` has six of the kills.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.scenarios.figures import Figures, scaled
from tests.support.tiny_model import save_tiny_llama
from tests.support.training.kills import KINDS, storm

pytestmark = [pytest.mark.operate, pytest.mark.timeout(3600)]

# Rewards must differ within a group, or the advantages are 0.
REWARD = "def odd(text, answer):\n    return sum(ord(c) % 2 for c in text) / max(1, len(text))\n"
KILLS = scaled(50, 6)


def test_training_kills(tmp_path):
    base, reward = tmp_path / "base", tmp_path / "reward.py"
    save_tiny_llama(base)
    reward.write_text(REWARD)
    common = {
        "model": base,
        "dataset": "task:initials",
        "heldout": 4,
        "learning_rate": 0.01,
        "calibration_prompts": 8,
        "max_new_tokens": 4,
        "device": "cpu",
    }
    on_policy = {
        **common,
        "validation": 4,
        "validate_every": 3,
        "prompts_per_step": 2,
        "micro_batch": 2,
        "steps": 16,
        "checkpoint_every": 3,
    }
    methods = {
        "sft": {**common, "batch_size": 4, "steps": 40, "checkpoint_every": 5},
        "grpo": {**on_policy, "completions": 4, "reward": f"{reward}:odd"},
        "sdft": on_policy,
    }
    figures, happened = Figures("training_kills"), Counter[str]()
    for number, (method, share) in enumerate({"sft": 0.6, "grpo": 0.2, "sdft": 0.2}.items()):
        kills = max(1, round(KILLS * share))
        happened += storm(method, methods[method], tmp_path / method, kills, seed=number)
    kills = sum(happened[kind] for kind in KINDS)
    size = f"{kills} kills of {happened['runs']} runs"
    for name in (*KINDS, "checkpoints damaged", "resumed after step 0"):
        figures.record(name.replace(" ", "_").lower(), happened[name], "times", size=size)
    # A mask that differs, or a run that does not resume, is an AssertionError above.
    figures.record("resumed_to_the_same_mask", happened["runs"], "runs", ">= 1", size=size)
    figures.end()
