"""Sampled completions of prompts that come many times each, as GRPO's do.

What `transformers.generate` computes, without what it computes in vain: a prompt is read once and
not once for each of its completions, and a completion that has ended leaves the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer.data.encoding import pad
from bmt_trainer.distributed import any_of_all

# Rows leave when this share of them has ended: to select rows copies the whole cache.
_ENDED = 0.25


def ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and those of the checkpoint's settings."""
    more = getattr(model.generation_config, "eos_token_id", None)
    more = [more] if isinstance(more, int) else (more or [])
    return {int(token) for token in (tokenizer.eos_token_id, *more) if token is not None}


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos: Collection[int],
    padding: int,
) -> list[list[int]]:
    """A completion of each of `prompts`, token ids, drawn from softmax(logits / temperature).

    Equal prompts are to lie side by side. A completion ends after one of `eos`, which it keeps, or
    with `max_new_tokens`.
    """
    device, training = model.device, model.training
    model.eval()  # in training, gradient checkpointing would drop the cache
    groups = [(list(ids), len(list(same))) for ids, same in groupby(prompts)]
    rows, attend = (t.to(device) for t in pad([ids for ids, _ in groups], padding, "left"))
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=rows,
        attention_mask=attend,
        position_ids=_positions(attend),
        past_key_values=cache,
        logits_to_keep=1,
    ).logits[:, -1]
    counts = torch.tensor([count for _, count in groups], device=device)
    chosen = torch.arange(len(groups), device=device).repeat_interleave(counts)
    cache.batch_select_indices(chosen)
    logits, attend = logits[chosen], attend[chosen]
    last = torch.tensor(sorted(eos), device=device)
    found: list[list[int]] = [[] for _ in prompts]
    left = torch.arange(len(prompts), device=device)  # whose completion each row is
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        drawn = torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1)
        for at, token, over in zip(
            left.tolist(), drawn[:, 0].tolist(), ended.tolist(), strict=True
        ):
            if not over:
                found[at].append(token)
        ended |= torch.isin(drawn[:, 0], last)
        more = not bool(ended.all())
        # Sharded layers are gathered by all processes, so that none may stop before the others.
        if step == max_new_tokens - 1 or not any_of_all(more, device):
            break
        if more and float(ended.float().mean()) >= _ENDED:
            stay = (~ended).nonzero().flatten()
            cache.batch_select_indices(stay)
            drawn, attend, left, ended = drawn[stay], attend[stay], left[stay], ended[stay]
        attend = torch.cat([attend, attend.new_ones(len(attend), 1)], dim=1)
        logits = model(
            input_ids=drawn,
            attention_mask=attend,
            position_ids=_positions(attend)[:, -1:],
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
    model.train(training)
    return found


def _positions(attend: Tensor) -> Tensor:
    """[B, S]: each token's place among those that are attended to."""
    return (attend.cumsum(-1) - 1).clamp(min=0)
