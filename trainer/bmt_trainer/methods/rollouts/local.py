"""Sampling several completions of each prompt with the model in this process, as in GRPO.

The distribution of `transformers.generate`, with less work: the model reads a prompt once, not
once per completion, and a completion that has ended leaves the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bmt_trainer.data.batching import pad
from bmt_trainer.data.encoding import render
from bmt_trainer.data.examples import Example
from bmt_trainer.distributed import any_rank
from bmt_trainer.evaluation.generate import eos_token_ids

# Ended rows leave the batch once they are this share of it: selecting rows copies the whole cache.
_ENDED_SHARE = 0.25


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    at_once: int | None = None,
) -> list[list[int]]:
    """A completion of each of `prompts`, token ids, drawn from softmax(logits / temperature).

    at_once: completions in memory at a time, by default all. Pieces follow each other and draw
    their random numbers in this order, so another size gives other completions of the same
    distribution; at temperature 0 the same ones.

    Temperature 0 takes the likeliest token.
    top_k, top_p, min_p: only among the tokens that these leave, in this order, as
    `transformers.generate` applies them; 0, 1 and 0 leave all.

    Equal prompts must be adjacent. A completion ends after one of `eos_token_ids`, which it keeps,
    or at `max_new_tokens`.
    """
    training = model.training
    truncate = _truncation(top_p, top_k, min_p)
    model.eval()  # in training, gradient checkpointing would drop the cache
    size = at_once or max(1, len(prompts))
    pieces = [prompts[at : at + size] for at in range(0, len(prompts), size)]
    completions = [
        one
        for piece in pieces
        for one in _sample(
            model, piece, max_new_tokens, temperature, truncate, eos_token_ids, pad_token_id
        )
    ]
    model.train(training)
    return completions


def _sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    truncate: LogitsProcessorList,
    eos_token_ids: Collection[int],
    pad_token_id: int,
) -> list[list[int]]:
    device = model.device
    groups = [(list(ids), len(list(same))) for ids, same in groupby(prompts)]
    rows, attend = (t.to(device) for t in pad([ids for ids, _ in groups], pad_token_id, "left"))
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
    last = torch.tensor(sorted(eos_token_ids), device=device)
    completions: list[list[int]] = [[] for _ in prompts]
    left = torch.arange(len(prompts), device=device)  # [B]: the completion that each row extends
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        if temperature:
            scores = truncate(None, logits.float() / temperature)
            drawn = torch.multinomial(torch.softmax(scores, -1), 1)
        else:
            drawn = logits.argmax(-1, keepdim=True)
        for at, token, over in zip(
            left.tolist(), drawn[:, 0].tolist(), ended.tolist(), strict=True
        ):
            if not over:
                completions[at].append(token)
        ended |= torch.isin(drawn[:, 0], last)
        more = not bool(ended.all())
        # All processes gather sharded layers together, so none may stop before the others.
        if step == max_new_tokens - 1 or not any_rank(more, device):
            break
        if more and float(ended.float().mean()) >= _ENDED_SHARE:
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
    return completions


def _truncation(top_p: float, top_k: int, min_p: float) -> LogitsProcessorList:
    """The processors that set scores of unlikely tokens to -inf; none if all are neutral."""
    chosen = LogitsProcessorList()
    if top_k > 0:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chosen.append(TopPLogitsWarper(top_p))
    if min_p > 0:
        chosen.append(MinPLogitsWarper(min_p))
    return chosen


def _positions(attend: Tensor) -> Tensor:
    """[B, S]: each token's position among those that are attended to."""
    return (attend.cumsum(-1) - 1).clamp(min=0)


def sample_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    seed: int,
) -> list[tuple[list[int], list[int]]]:
    """Each prompt and a completion sampled at temperature 1, token ids. Keeps torch's RNG state."""
    ids = [render(tokenizer, example) for example in examples]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        completions = sample(
            model,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=1.0,
            eos_token_ids=eos_token_ids(model, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
    return list(zip(ids, completions, strict=True))
