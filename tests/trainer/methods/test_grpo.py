"""GRPO end to end with TRL on a tiny model: mask modes, files, resumption, live and lean masks."""

from __future__ import annotations

import dataclasses
import json
from itertools import groupby

import bmt_core
import pytest
import torch
from bmt_trainer.errors import ConfigError, DataError
from bmt_trainer.masking.equations import sharpness
from bmt_trainer.masking.masked_linear import MaskedLinear
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.grpo import train
from bmt_trainer.models import load_model

from tests.support.tiny_model import interrupt_after
from tests.support.training.display import quiet

STEPS = 4
# Rewards must differ within a group, or the advantages are 0.
REWARD = "def odd(text, answer):\n    return sum(ord(c) % 2 for c in text) / max(1, len(text))\n"


def settings(checkpoint, output, **changes):
    reward = output.parent / "reward.py"
    reward.write_text(REWARD)
    return GrpoConfig(
        **{
            "model": str(checkpoint),
            "dataset": "task:initials",
            "output": output,
            "heldout": 4,
            "validation": 4,
            "validate_every": 2,
            "steps": STEPS,
            "prompts_per_step": 2,
            "completions": 4,
            "micro_batch": 4,
            "learning_rate": 0.01,
            "calibration_prompts": 8,
            "max_new_tokens": 6,
            "checkpoint_every": 2,
            "reward": f"{reward}:odd",
            "device": "cpu",
            **changes,
        }
    )


@pytest.fixture
def forwards(monkeypatch):
    """(mode, gradients enabled, α, token shape) of each forward pass of a masked layer."""
    seen = []
    forward = MaskedLinear.forward

    def spying(self, x):
        seen.append((self.state.mode, torch.is_grad_enabled(), self.state.alpha, x.shape[:-1]))
        return forward(self, x)

    monkeypatch.setattr(MaskedLinear, "forward", spying)
    return seen


def test_rollouts_are_hard_losses_soft_and_the_reference_off(checkpoint, tmp_path, forwards):
    before = bmt_core.fingerprint(checkpoint)
    mask = train(
        settings(checkpoint, tmp_path / "m.bmt", beta=1e-2, heldout=0, validation=0), quiet()
    )
    kinds = {(mode, grad) for mode, grad, *_ in forwards}
    assert kinds == {("off", False), ("hard", False), ("soft", True)}
    # Each micro-batch of a step at that step's sharpness: two layers, two micro-batches, each in
    # one pass, or in two if its rows share prompts.
    alphas = groupby(alpha for mode, _, alpha, _ in forwards if mode == "soft")
    passes = {alpha: len(list(same)) for alpha, same in alphas}
    assert list(passes) == [sharpness(t, STEPS, 1e3, 1e4) for t in range(STEPS)]
    assert set(passes.values()) <= {4, 6, 8}
    # The reference reads the same tokens as the loss: each prompt once, and each completion.
    soft, off = ({s[-1] for mode, _, _, s in forwards if mode == m} for m in ("soft", "off"))
    assert soft <= off
    assert mask.metadata["method"] == "grpo"
    assert bmt_core.fingerprint(checkpoint) == before
    fresh = load_model(checkpoint)
    assert set(bmt_core.geometry(checkpoint)) == {t.name for t in mask.tensors}
    assert fresh is not None


def test_files_and_metadata_of_a_run(checkpoint, tmp_path):
    config = settings(checkpoint, tmp_path / "m.bmt")
    mask = train(config, quiet())
    assert bmt_core.load(config.output) == mask
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"m.bmt", "m.bmt.history.json", "reward.py"}
    history = json.loads((tmp_path / "m.bmt.history.json").read_text())
    assert [s["step"] for s in history["steps"]] == [1, 2, 3, 4]
    assert all(0 <= s["reward"] <= 1 and s["closed_gates"] > 0 for s in history["steps"])
    assert [v["step"] for v in history["validation"]] == [2, 4]
    assert mask.metadata["step"] in (2, 4)
    assert {"base", "init", "mask"} <= set(mask.metadata["scores"])


def test_equal_settings_give_equal_masks_and_learn(checkpoint, tmp_path):
    one = train(settings(checkpoint, tmp_path / "1.bmt", select="last"), quiet())
    two = train(settings(checkpoint, tmp_path / "2.bmt", select="last"), quiet())
    still = settings(checkpoint, tmp_path / "3.bmt", select="last", learning_rate=1e-12)
    assert one == two != train(still, quiet())


def test_a_resumed_run_is_bit_identical(checkpoint, tmp_path, monkeypatch):
    config = settings(checkpoint, tmp_path / "whole.bmt")
    whole = train(config, quiet())
    cut = dataclasses.replace(config, output=tmp_path / "cut.bmt")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(cut, quiet())
    resumed = train(dataclasses.replace(cut, resume=True), quiet())
    assert resumed == whole
    histories = [
        json.loads((tmp_path / f"{name}.bmt.history.json").read_text()) for name in ("whole", "cut")
    ]
    assert histories[0]["validation"] == histories[1]["validation"]
    rewards = [[s["reward"] for s in h["steps"]] for h in histories]
    assert rewards[0] == rewards[1]


def test_training_only_the_live_gates_gives_the_same_mask(checkpoint, tmp_path):
    common = {"select": "last", "heldout": 0, "validation": 0, "steps": 6}
    dense = train(settings(checkpoint, tmp_path / "d.bmt", live_set="off", **common), quiet())
    live = train(settings(checkpoint, tmp_path / "l.bmt", live_set="on", **common), quiet())
    assert live == dense
    still = {**common, "learning_rate": 1e-12}
    assert train(settings(checkpoint, tmp_path / "s.bmt", **still), quiet()) != live


def test_lean_masks_have_learned_deletions_only(checkpoint, tmp_path):
    common = {"select": "last", "validation": 0, "learning_rate": 0.03, "reg_lambda": 0}
    full = train(settings(checkpoint, tmp_path / "f.bmt", **common), quiet())
    lean = train(settings(checkpoint, tmp_path / "l.bmt", lean="on", **common), quiet())
    still = {**common, "learning_rate": 1e-12}
    start = train(settings(checkpoint, tmp_path / "s.bmt", **still), quiet())
    assert lean == bmt_core.difference(full, start)
    assert 0 < lean.zeros < full.zeros
    assert lean.metadata["zeros_full"] == full.zeros
    assert lean.metadata["lean"] is True
    auto = train(settings(checkpoint, tmp_path / "a.bmt", lean="auto", **common), quiet())
    assert auto in (lean, full)
    assert {"lean", "full", "mask"} <= set(auto.metadata["scores"])


def test_a_start_without_the_tail(checkpoint, tmp_path):
    common = {"select": "last", "heldout": 0, "validation": 0, "learning_rate": 1e-12}
    paper = train(settings(checkpoint, tmp_path / "p.bmt", **common), quiet())
    clipped = train(settings(checkpoint, tmp_path / "c.bmt", init="no-tail", **common), quiet())
    assert 0 < clipped.zeros < paper.zeros
    assert bmt_core.difference(clipped, paper).zeros == 0


def test_bad_settings(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="does not divide"):
        settings(checkpoint, tmp_path / "m.bmt", micro_batch=3)
    with pytest.raises(ConfigError, match="live_set"):
        settings(checkpoint, tmp_path / "m.bmt", live_set="on", alpha_start=100)
    with pytest.raises(ConfigError, match="reward"):
        train(settings(checkpoint, tmp_path / "m.bmt", reward="nothing"), quiet())
    with pytest.raises(DataError, match="at most 5 tokens"):
        train(settings(checkpoint, tmp_path / "m.bmt", max_length=5), quiet())
