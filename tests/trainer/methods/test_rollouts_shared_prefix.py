"""Losses with each prompt read once are TRL's."""

from __future__ import annotations

import pytest
import torch
from bmt_trainer.masking.attach import attach
from bmt_trainer.masking.masked_linear import MaskedLinear
from bmt_trainer.methods.rollouts.shared_prefix import SharedPrompts
from trl.trainer.utils import add_fused_lm_head

from tests.support.tiny_model import tiny_llama

PROMPT, COMPLETION = 6, 4


@pytest.fixture
def policy():
    """A masked model with TRL's head, and gates of which many are between on and off."""
    model = tiny_llama()
    attached = attach(model)
    attached.state.alpha, attached.state.regularizer = 10.0, 0.01
    torch.manual_seed(1)
    for gate in attached.gates():
        gate.data.normal_(0.05, 0.05)
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    return model, attached


def batch(of_row: list[int]) -> dict[str, torch.Tensor]:
    """Rows of two prompts, one of them padded, in the order of `of_row`; other completions each."""
    torch.manual_seed(2)
    prompts = torch.randint(3, 259, (2, PROMPT))
    attend = torch.ones(2, PROMPT, dtype=torch.long)
    prompts[1, :2] = attend[1, :2] = 0
    completions = torch.randint(3, 259, (len(of_row), COMPLETION))
    seen = torch.ones_like(completions)
    seen[0, 2:] = 0
    ids = torch.cat([prompts[of_row], completions], dim=1)
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    attention = torch.cat([attend[of_row], seen], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": attention,
        "labels": labels.masked_fill(attention == 0, -100),
    }


def losses(call, attached, rows):
    """Log-probabilities [B, COMPLETION] and gradients of all gates, of a weighted sum."""
    for gate in attached.gates():
        gate.grad = None
    output = call(**rows, fused_lm_head=True)
    logps = output.log_probs[:, -COMPLETION:]
    weights = torch.linspace(-1, 1, logps.numel()).reshape(logps.shape)
    (logps * weights).sum().backward()
    return logps.detach(), [gate.grad.clone() for gate in attached.gates()]


@pytest.mark.parametrize("of_row", [[0, 1, 0, 1, 1, 0], [0, 0, 0], [1, 1], [0, 1]])
def test_log_probabilities_and_gradients_are_those_of_whole_rows(policy, of_row):
    model, attached = policy
    rows = batch(of_row)
    wanted, gradients = losses(model, attached, rows)
    shared = SharedPrompts(model, model.config, attached.state, PROMPT)
    logps, others = losses(shared, attached, rows)
    assert torch.allclose(logps, wanted, atol=2e-6)
    assert attached.state.regularizer == 0.01
    for one, other in zip(gradients, others, strict=True):
        assert float((one - other).norm() / one.norm()) < 1e-5


def test_a_prompt_is_read_once(policy, monkeypatch):
    model, attached = policy
    tokens = []
    forward = MaskedLinear.forward
    monkeypatch.setattr(
        MaskedLinear,
        "forward",
        lambda self, x: tokens.append(x.shape[:-1].numel()) or forward(self, x),
    )
    shared = SharedPrompts(model, model.config, attached.state, PROMPT)
    shared(**batch([0, 1] * 4), fused_lm_head=True)
    layers = len(attached.layers)
    assert tokens == [2 * (PROMPT - 1)] * layers + [8 * (1 + COMPLETION)] * layers
