"""Eq. 3's ratio to the hard policy that sampled, and its clip, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from bmt_trainer.methods.config import GrpoConfig
from bmt_trainer.methods.grpo import MaskedGRPOTrainer, train
from bmt_trainer.models import load_model
from torch import Tensor
from torch.func import functional_call

from tests.support.training.display import quiet

ALPHA, EPSILON, TEMPERATURE = 30.0, 1e-3, 0.7
REWARD = "def odd(text, answer):\n    return sum(ord(c) % 2 for c in text) / max(1, len(text))\n"


def settings(checkpoint, output, **changes):
    reward = output.parent / "reward.py"
    reward.write_text(REWARD)
    return GrpoConfig(
        **{
            "model": str(checkpoint),
            "dataset": "task:initials",
            "output": output,
            "heldout": 0,
            "validation": 0,
            "steps": 1,
            "prompts_per_step": 2,
            "completions": 4,
            "micro_batch": 8,
            "learning_rate": 0.01,
            # Nearer to a soft mask than the paper's 1000: the ratios differ from 1.
            "alpha_start": ALPHA,
            "alpha_end": ALPHA,
            "eta": 0.1,
            "reg_lambda": 0.0,
            "temperature": TEMPERATURE,
            "clip": EPSILON,
            "calibration_prompts": 8,
            "max_new_tokens": 6,
            "precision": "fp32",
            "reward": f"{reward}:odd",
            "device": "cpu",
            **changes,
        }
    )


def row_log_probabilities(model, weights, prompt, completion) -> Tensor:
    """log p of a completion's tokens, one row at a time, without padding or a cache."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = functional_call(model, weights, (ids,)).logits[0] / TEMPERATURE
    log_p = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
    return log_p.gather(1, torch.tensor(completion)[:, None])[:, 0]


def eq3(model, gates, rows, advantages, epsilon) -> tuple[Tensor, int, int]:
    """The loss of Eq. 3 by its own terms; tokens, and those whose gradient the clip takes."""
    bases = dict(model.named_parameters())
    soft, hard = dict(bases), dict(bases)
    for name, G in gates.items():
        W = bases[f"{name}.weight"]
        soft[f"{name}.weight"] = W * torch.sigmoid(ALPHA * G)
        hard[f"{name}.weight"] = W * (G > 0)
    total, tokens, stopped = torch.zeros((), dtype=torch.float64), 0, 0
    for (prompt, completion), A in zip(rows, advantages, strict=True):
        new = row_log_probabilities(model, soft, prompt, completion)
        with torch.no_grad():
            old = row_log_probabilities(model, hard, prompt, completion).tolist()
        row = torch.zeros((), dtype=torch.float64)
        for log_p, log_old in zip(new, old, strict=True):
            ratio = torch.exp(log_p - log_old)
            value = float(ratio.detach())
            clipped = min(max(value, 1 - epsilon), 1 + epsilon)
            if value * A <= clipped * A:
                row = row + ratio * A
            else:
                row, stopped = row + clipped * A, stopped + 1
            tokens += 1
        total = total - row / len(completion)
    return total / len(rows), tokens, stopped


@pytest.fixture
def first_loss(monkeypatch):
    """The first loss of a run: its inputs, its value, the gates, and their gradients."""
    seen: dict = {}
    loss, step = MaskedGRPOTrainer._compute_loss, MaskedGRPOTrainer.training_step

    def losing(self, model, inputs):
        value = loss(self, model, inputs)
        layers = self.attached.layers.items()
        seen.setdefault("inputs", inputs)
        seen.setdefault("loss", float(value.detach()))
        seen.setdefault("gates", {n: m.gate_logits.detach().clone() for n, m in layers})
        return value

    def stepping(self, *args, **kwargs):
        done = step(self, *args, **kwargs)
        layers = self.attached.layers.items()
        seen.setdefault("gradients", {n: m.gate_logits.grad.clone() for n, m in layers})
        return done

    monkeypatch.setattr(MaskedGRPOTrainer, "_compute_loss", losing)
    monkeypatch.setattr(MaskedGRPOTrainer, "training_step", stepping)
    return seen


def unpadded(inputs) -> list[tuple[list[int], list[int]]]:
    parts = []
    for side in ("prompt", "completion"):
        ids, attend = inputs[f"{side}_ids"], inputs[f"{side}_mask"].bool()
        parts.append([row[kept].tolist() for row, kept in zip(ids, attend, strict=True)])
    return list(zip(*parts, strict=True))


@pytest.mark.parametrize("epsilon", [EPSILON, 10.0], ids=["clipped", "free"])
def test_loss_and_gradients_are_those_of_equation_3(checkpoint, tmp_path, first_loss, epsilon):
    train(settings(checkpoint, tmp_path / "m.bmt", clip=epsilon), quiet())
    model = load_model(checkpoint).double()
    model.requires_grad_(False)
    gates = {n: G.double().requires_grad_() for n, G in first_loss["gates"].items()}
    rows = unpadded(first_loss["inputs"])
    advantages = first_loss["inputs"]["advantages"].double().tolist()
    loss, tokens, stopped = eq3(model, gates, rows, advantages, epsilon)
    loss.backward()
    assert first_loss["loss"] == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-6)
    # Some tokens are within the range and some are beyond it, or the clip is not tried.
    assert stopped == 0 if epsilon > 1 else 0 < stopped < tokens
    ours = torch.cat([g.flatten() for g in first_loss["gradients"].values()]).double()
    exact = torch.cat([G.grad.flatten() for G in gates.values()])
    assert float((ours - exact).norm() / exact.norm()) < 1e-3


@pytest.mark.found
def test_the_clip_range_changes_the_mask(checkpoint, tmp_path):
    """Of a ratio that is 1, no range changes anything: 0.2 and 1e-6 gave equal masks."""
    masks = [
        train(settings(checkpoint, tmp_path / f"{at}.bmt", steps=3, clip=clip), quiet())
        for at, clip in enumerate((0.2, 1e-6))
    ]
    assert masks[0] != masks[1]


def test_a_sharp_mask_has_the_ratio_1(checkpoint, tmp_path, first_loss):
    sharp = {"alpha_start": 1e9, "alpha_end": 1e9, "live_set": "off"}
    train(settings(checkpoint, tmp_path / "m.bmt", **sharp), quiet())
    inputs = first_loss["inputs"]
    # The loss's value is then minus the mean advantage of the rows, whatever the tokens are.
    expected = -math.fsum(inputs["advantages"].tolist()) / len(inputs["advantages"])
    assert first_loss["loss"] == pytest.approx(expected, abs=1e-5)
