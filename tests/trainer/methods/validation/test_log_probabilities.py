"""Log-probabilities of given answers, and losses made of them, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from bmt_trainer.masking.attach import attach
from bmt_trainer.methods.config import DpoConfig, KtoConfig
from bmt_trainer.methods.preferences.losses import LabelLoss, PairLoss, with_partners
from bmt_trainer.methods.validation import losses
from bmt_trainer.methods.validation.log_probabilities import log_probabilities
from bmt_trainer.models import load_model

from tests.support.tiny_model import SHAPE, save_tiny_llama, tiny_llama

ROWS = [
    ([5, 6, 7, 8, 9, 10, 11], [0, 0, 0, 1, 1, 1, 1]),
    ([5, 6], [0, 1]),
    ([4, 3, 9, 9, 12, 7, 6, 5, 4, 3, 8, 30], [0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1, 1]),
    ([9, 9, 9, 9], [1, 1, 1, 1]),  # the first token is predicted by nothing
    ([2, 40, 41], [0, 0, 1]),
]


def plain(model, ids, mask):
    with torch.no_grad():
        every = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return sum(float(every[at - 1, ids[at]]) for at in range(1, len(ids)) if mask[at])


@pytest.fixture
def logits_of_passes(monkeypatch):
    """Logits of each forward pass."""
    from transformers import LlamaForCausalLM

    sizes = []
    forward = LlamaForCausalLM.forward

    def spying(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        sizes.append(outputs.logits.numel())
        return outputs

    monkeypatch.setattr(LlamaForCausalLM, "forward", spying)
    return sizes


@pytest.mark.found
@pytest.mark.parametrize("positions", [1, 3, 5, 12, 10**6])
def test_no_pass_has_more_logits_than_allowed(logits_of_passes, positions):
    """Neither long answers nor a large vocabulary take more memory."""
    model, shown = tiny_llama(), []
    expected = [plain(model, ids, mask) for ids, mask in ROWS]
    logits_of_passes.clear()
    most = positions * SHAPE["vocab_size"]
    found = log_probabilities(model, ROWS, 0, shown.append, most_logits=most)
    assert found == pytest.approx(expected, abs=1e-4)
    assert sum(shown) == len(ROWS)
    # One position more if a pass has all, which is that of the token after the last.
    assert max(logits_of_passes) <= most + len(ROWS) * SHAPE["vocab_size"]
    assert (len(logits_of_passes) == 1) == (positions == 10**6)


def test_the_loss_of_completions_is_the_mean_over_their_tokens():
    model = tiny_llama()
    rows = [{"input_ids": ids, "completion_mask": mask} for ids, mask in ROWS]
    nats = [-plain(model, ids, mask) for ids, mask in ROWS]
    tokens = [sum(mask[1:]) for _, mask in ROWS]
    loss = losses.of_completions(model, rows, 0)
    assert loss.loss == pytest.approx(sum(nats) / sum(tokens), rel=1e-5)
    assert loss.total == len(ROWS)
    low, high = loss.interval
    assert low < loss.loss < high
    # Rows of one loss a token have no spread, whatever their lengths.
    equal = losses.of_completions(model, [rows[0]] * 3, 0)
    assert equal.interval == pytest.approx((equal.loss, equal.loss))


def attached_model(folder):
    model = load_model(folder)
    attached = attach(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for gate in attached.gates():
            gate.normal_()
    return model, attached


def test_losses_of_preferences_are_those_of_the_papers_equations(tmp_path):
    folder = save_tiny_llama(tmp_path / "base", torch.float32)
    model, attached = attached_model(folder)
    policy, base = load_model(folder), load_model(folder)
    with torch.no_grad():
        for name, layer in attached.layers.items():
            policy.get_submodule(name).weight.mul_(layer.gate_logits > 0)
    common = {"model": "m", "dataset": "d", "output": "o.bmt", "beta": 0.7}

    def ratio(prompt, answer):
        ids, mask = [*prompt, *answer], [0] * len(prompt) + [1] * len(answer)
        return plain(policy, ids, mask) - plain(base, ids, mask)

    pairs = [
        {"prompt_ids": [5, 6, at], "chosen_ids": [7, at], "rejected_ids": [8, 9, at]}
        for at in range(10, 13)
    ]
    expected = [
        math.log1p(math.exp(-0.7 * (ratio(p, row["chosen_ids"]) - ratio(p, row["rejected_ids"]))))
        for row in pairs
        for p in [row["prompt_ids"]]
    ]
    with attached.state.use("hard"):
        found = PairLoss(DpoConfig(**common), model, attached, 0)(pairs)
    assert found.loss == pytest.approx(sum(expected) / 3, rel=1e-5)

    rows = with_partners(
        [
            {"prompt_ids": [5, at], "completion_ids": [at, 9, at + 1], "label": at % 2 == 0}
            for at in range(10, 15)
        ]
    )
    apart = [ratio(row["prompt_ids"], row["KL_completion_ids"]) for row in rows]
    point = max(0.0, sum(apart) / len(apart))
    expected = []
    for row in rows:
        sign, weight = (1, 1.0) if row["label"] else (-1, 2.0)
        value = sign * (ratio(row["prompt_ids"], row["completion_ids"]) - point)
        expected.append(weight * (1 - 1 / (1 + math.exp(-0.7 * value))))
    config = KtoConfig(**common, undesirable_weight=2.0)
    loss = LabelLoss(config, model, attached, 0)
    with attached.state.use("hard"):
        assert loss(rows).loss == pytest.approx(sum(expected) / 5, rel=1e-5)
        assert loss(rows) == loss(rows)
