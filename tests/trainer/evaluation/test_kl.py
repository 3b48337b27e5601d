"""Forward KL divergence against a direct computation in fp64."""

from __future__ import annotations

import pytest
import torch
from bmt_trainer.evaluation.kl import forward_kl
from bmt_trainer.masking.attach import attach

from tests.support.tiny_model import tiny_llama

TEXTS = [([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14]), ([20, 21], [22])] * 4


def test_a_mask_without_zeros_has_no_divergence():
    model = tiny_llama()
    found = forward_kl(model, attach(model), TEXTS, padding=0)
    assert (found.per_token, found.per_sequence) == (0.0, 0.0)
    assert (found.tokens, found.sequences) == (28, 12)


def test_divergence_sums_over_the_vocabulary_at_completion_tokens():
    model = tiny_llama()
    attached = attach(model)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight.mul_(50)  # a divergence far above fp32's rounding
        for layer in attached.layers.values():
            layer.gate_logits.view(-1)[::3] = -1.0
    total = 0.0
    for prompt, completion in TEXTS:
        ids, losses = torch.tensor([[*prompt, *completion]]), []
        for mode in ("off", "hard"):
            with torch.no_grad(), attached.state.use(mode):
                losses.append(torch.log_softmax(model(ids).logits[0].double(), -1))
        rows = slice(len(prompt) - 1, -1)
        p, q = losses[0][rows], losses[1][rows]
        total += float((p.exp() * (p - q)).sum())
    found = forward_kl(model, attached, TEXTS, padding=0)
    assert total > 0.01
    assert found.per_token == pytest.approx(total / 28, rel=1e-2)
    assert found.per_sequence == pytest.approx(total / 12, rel=1e-2)
