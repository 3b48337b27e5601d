"""Sampling for GRPO: the distribution of `transformers.generate`, with less computation."""

from __future__ import annotations

import pytest
import torch
from bmt_trainer.methods.rollouts.local import sample

from tests.support.tiny_model import tiny_llama

PAD, EOS = 0, 2
PROMPTS = [[5, 6, 7, 8, 9, 10]] * 3 + [[11, 12]] * 2 + [[5, 6]] * 3


@pytest.fixture(scope="module")
def model():
    made = tiny_llama()
    # Flat logits would make the greedy choice a matter of rounding.
    with torch.no_grad():
        made.lm_head.weight.mul_(20)
    return made


def run(model, prompts=PROMPTS, **changes):
    options = {
        "max_new_tokens": 12,
        "temperature": 1.0,
        "eos_token_ids": [EOS],
        "pad_token_id": PAD,
    }
    return sample(model, prompts, **{**options, **changes})


def greedy(model, ids, eos, count):
    rows = torch.tensor([ids])
    made = model.generate(
        rows, max_new_tokens=count, do_sample=False, eos_token_id=eos, pad_token_id=PAD
    )
    return made[0, len(ids) :].tolist()


def test_cold_sampling_is_greedy_generation_whoever_ends_first(model):
    free = [greedy(model, ids, None, 12) for ids in PROMPTS]
    # Tokens that end some prompts early, so that rows leave the batch.
    ends = [free[0][3], free[3][7]]
    expected = [greedy(model, ids, ends, 12) for ids in PROMPTS]
    assert len({len(answer) for answer in expected}) > 1
    assert run(model, temperature=1e-6, eos_token_ids=ends) == expected


def test_samples_have_the_models_probabilities(model):
    ids, draws = [5, 6, 7], 4000
    torch.manual_seed(0)
    drawn = run(model, [ids] * draws, max_new_tokens=1, temperature=8.0)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=model.config.vocab_size)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]

    def distance(temperature):
        return float((counts / draws - torch.softmax(logits / temperature, -1)).abs().sum())

    # Chance leaves about the square root of (tokens / draws).
    assert distance(8.0) < 0.3 < distance(4.0)


def test_modes_and_seeds(model):
    model.train()
    torch.manual_seed(3)
    first = run(model)
    assert model.training
    torch.manual_seed(3)
    assert run(model) == first
    assert all(1 <= len(answer) <= 12 for answer in first)
    model.eval()
