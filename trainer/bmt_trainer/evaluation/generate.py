"""Greedy completions of prompts by transformers; `backends` chooses between it and vLLM.

Legend: B rows of a batch, S tokens of its longest row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer.data.batching import pad
from bmt_trainer.data.encoding import end_of_turn, render
from bmt_trainer.data.examples import Example
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.thoughts import Completion
from bmt_trainer.models import evaluating, repeats_cache

#: (examples, maximum number of new tokens) -> the greedy completion of each one's prompt.
Generate = Callable[[Sequence[Example], int], list[Completion]]

#: Sampling settings of a request to vLLM that override the checkpoint's own generation settings.
#: Llama-3.2 recommends top_p 0.9 and Qwen2.5 a repetition penalty; masks are trained with neither.
NEUTRAL_SAMPLING = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def stop_at_end_of_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Make answers end at the chat template's end of a turn; a line if no server ends them there.

    Changes the generation settings of the loaded model, which transformers alone heeds: they may
    name the end of a text alone. Servers, and rollouts, end answers at the tokenizer's eos too.
    """
    end, eos, settings = end_of_turn(tokenizer), tokenizer.eos_token_id, model.generation_config
    if settings is None:
        return None
    given = settings.eos_token_id
    stops = [given] if isinstance(given, int) else list(given or [])
    missing = [token for token in dict.fromkeys((eos, end)) if token not in (*stops, None)]
    if missing:
        settings.eos_token_id = [*stops, *missing]
    if end is None or end in (*stops, eos):
        return None
    return (
        f"the chat template ends turns with {tokenizer.convert_ids_to_tokens(end)!r}, which is no "
        f"end for the model: answers end there here, and a server needs it as a stop token "
        f"(stop_token_ids: [{end}])"
    )


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and the checkpoint's generation settings'."""
    more = getattr(model.generation_config, "eos_token_id", None)
    more = [more] if isinstance(more, int) else (more or [])
    return {int(token) for token in (tokenizer.eos_token_id, *more) if token is not None}


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda n: None,
    reader: CompletionReader | None = None,
) -> list[Completion]:
    """Greedy completions of the examples' prompts, in a server's forward (`models.evaluating`).

    The tokens that all prompts begin with, a system message or an instruction, are prefilled once.
    advance: called with the number of completions that each batch adds; reader: finds thoughts; by
    default those of the tokenizer's chat template.
    """
    reader = reader or CompletionReader(tokenizer)
    ids = [render(tokenizer, example) for example in examples]
    made = [Completion("")] * len(ids)
    ends = eos_token_ids(model, tokenizer)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding
    shared = _shared_length(ids)
    head = torch.tensor(ids[0][:shared] if ids else [], dtype=torch.long)
    with evaluating(model):
        cache = _prefill(model, head)
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            # Left padding, so that new tokens follow the prompt's last token.
            rows, attend = pad([ids[i][shared:] for i in chosen], tokenizer.pad_token_id, "left")
            rows = torch.cat([head.expand(len(chosen), -1), rows], dim=1)
            attend = torch.cat([attend.new_ones(len(chosen), shared), attend], dim=1)
            output = model.generate(  # type: ignore[operator]
                input_ids=rows.to(model.device),
                attention_mask=attend.to(model.device),
                past_key_values=_repeated(cache, len(chosen)),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                # Greedy, against the checkpoint's own generation settings: those of
                # Qwen2.5-Instruct penalize repetition, which training does not.
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
            for i, row in zip(chosen, output[:, rows.shape[1] :], strict=True):
                new = row.tolist()
                made[i] = reader.of_ids(new, examples[i], cut=ends.isdisjoint(new))
            advance(len(chosen))
    return made


def _shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix of all rows, at most the shortest row less its last token.

    Each row keeps a token of its own, because generation starts from one.
    """
    if not rows:
        return 0
    # In lexicographic order, the common prefix of the first and last row is that of all rows.
    first, last = min(rows, key=tuple), max(rows, key=tuple)
    alike = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    return min(alike, min(map(len, rows)) - 1)


def _prefill(model: PreTrainedModel, head: torch.Tensor) -> DynamicCache | None:
    """Key-value cache of the tokens `head`, [S], for one sequence.

    None if there are no tokens, or if the model has states that cannot be repeated.
    """
    if not head.numel() or not repeats_cache(model.config):
        return None
    cache = DynamicCache(config=model.config)
    model(input_ids=head[None].to(model.device), past_key_values=cache, logits_to_keep=1)
    return cache


def _repeated(cache: DynamicCache | None, count: int) -> DynamicCache | None:
    """A copy of one sequence's cache, repeated for `count` sequences."""
    if cache is None:
        return None
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(count)
    return copied
