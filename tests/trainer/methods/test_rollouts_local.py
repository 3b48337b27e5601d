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


def kept(probabilities, top_k, top_p, min_p):
    """Probabilities after truncation, by loops: by rank, by mass, by share of the greatest."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    order = order[: top_k or None]
    left = [probabilities[i] for i in order]
    mass, chosen = 0.0, []
    for i, p in zip(order, left, strict=True):
        if mass < top_p * sum(left):
            chosen.append(i)
        mass += p
    most = probabilities[order[0]]
    chosen = [i for i in chosen if probabilities[i] >= min_p * most]
    total = sum(probabilities[i] for i in chosen)
    return {i: probabilities[i] / total for i in chosen}


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(5, 1.0, 0.0), (0, 0.6, 0.0), (0, 1.0, 0.5), (20, 0.7, 0.2), (1, 1.0, 0.0)],
)
def test_truncated_samples_have_the_probabilities_of_what_is_left(model, top_k, top_p, min_p):
    ids, draws, temperature = [5, 6, 7], 4000, 4.0
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].double()
    expected = kept(torch.softmax(logits / temperature, -1).tolist(), top_k, top_p, min_p)
    assert 1 <= len(expected) < model.config.vocab_size / 2
    torch.manual_seed(0)
    options = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temperature}
    drawn = run(model, [ids] * draws, max_new_tokens=1, **options)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=len(logits)) / draws
    assert set(counts.nonzero().flatten().tolist()) <= set(expected)
    distance = sum(abs(float(counts[i]) - p) for i, p in expected.items())
    assert distance < 2 * (len(expected) / draws) ** 0.5


def test_truncation_is_that_of_transformers_generate(model):
    """The same draws from the same seed, over several tokens and prompts of one length."""
    ids = [5, 6, 7, 8]
    options = {"temperature": 2.0, "top_k": 12, "top_p": 0.8, "min_p": 0.05}
    torch.manual_seed(1)
    ours = run(model, [ids], max_new_tokens=10, eos_token_ids=[], **options)
    torch.manual_seed(1)
    theirs = model.generate(
        torch.tensor([ids]),
        max_new_tokens=10,
        do_sample=True,
        pad_token_id=PAD,
        eos_token_id=None,
        **options,
    )
    assert ours == [theirs[0, len(ids) :].tolist()]


def test_neutral_truncation_changes_no_draw(model):
    torch.manual_seed(2)
    plain = run(model)
    torch.manual_seed(2)
    assert run(model, top_k=0, top_p=1.0, min_p=0.0) == plain
    torch.manual_seed(2)
    assert run(model, top_k=2) != plain


def test_modes_and_seeds(model):
    model.train()
    torch.manual_seed(3)
    first = run(model)
    assert model.training
    torch.manual_seed(3)
    assert run(model) == first
    assert all(1 <= len(answer) <= 12 for answer in first)
    model.eval()
