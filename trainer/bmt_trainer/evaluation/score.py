"""Held-out accuracy of greedy answers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer.data.encoding import pad, render
from bmt_trainer.data.sources import Example, Message
from bmt_trainer.evaluation.graders import WORDS, Grader
from bmt_trainer.evaluation.intervals import wilson
from bmt_trainer.models import evaluating


@dataclass(frozen=True)
class Score:
    """Right answers by the grader's readings: exact the strict one, lenient the other; of total."""

    exact: int
    lenient: int
    total: int

    @property
    def accuracy(self) -> float:
        """Exact match, 0 to 1."""
        return self.exact / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(self.exact, self.total)

    def to_json(self) -> dict[str, Any]:
        """The score for a mask's metadata."""
        return {
            "exact": self.exact,
            "lenient": self.lenient,
            "total": self.total,
            "accuracy": round(self.accuracy, 6),
            "interval95": [round(bound, 6) for bound in self.interval],
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.accuracy:6.1%} [{low:.1%}, {high:.1%}] exact, "
            f"{self.lenient / self.total:6.1%} lenient, n = {self.total}"
        )


def grade(completions: Sequence[str], examples: Sequence[Example], grader: Grader = WORDS) -> Score:
    """Score of one completion per example."""
    return Score(
        sum(outcomes(completions, examples, grader)),
        sum(outcomes(completions, examples, grader, lenient=True)),
        len(examples),
    )


def outcomes(
    completions: Sequence[str],
    examples: Sequence[Example],
    grader: Grader = WORDS,
    *,
    lenient: bool = False,
) -> list[bool]:
    """Which completions are right, by the strict reading or the lenient one."""
    judge = grader.lenient if lenient else grader.strict
    pairs = zip(completions, examples, strict=True)
    return [judge(text, example.answer) >= 1 for text, example in pairs]


def best_guess(
    train: Sequence[Example], heldout: Sequence[Example], grader: Grader = WORDS
) -> Score:
    """Score of always giving the most frequent training answer: what a guess is worth."""
    if not train:
        return Score(0, 0, len(heldout))
    guess = Counter(example.answer for example in train).most_common(1)[0][0]
    return grade([guess] * len(heldout), heldout, grader)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda n: None,
) -> list[str]:
    """The greedy completion of each prompt, computed as by a server (`models.evaluating`).

    What all prompts begin with, a system message and an instruction, is computed once.
    """
    ids = [render(tokenizer, prompt) for prompt in prompts]
    texts = [""] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding
    shared = _shared(ids)
    head = torch.tensor(ids[0][:shared] if ids else [], dtype=torch.long)
    with evaluating(model):
        cache = _prefill(model, head)
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            # On the left: the new tokens follow the prompt's last.
            rows, attend = pad([ids[i][shared:] for i in chosen], tokenizer.pad_token_id, "left")
            rows = torch.cat([head.expand(len(chosen), -1), rows], dim=1)
            attend = torch.cat([attend.new_ones(len(chosen), shared), attend], dim=1)
            output = model.generate(  # type: ignore[operator]
                input_ids=rows.to(model.device),
                attention_mask=attend.to(model.device),
                past_key_values=_repeated(cache, len(chosen)),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                # Greedy, whatever the checkpoint's generation settings recommend: those of
                # Qwen2.5-Instruct hold a penalty on repetition, no part of what was trained.
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
            )
            for i, row in zip(chosen, output[:, rows.shape[1] :], strict=True):
                texts[i] = str(tokenizer.decode(row, skip_special_tokens=True))
            advance(len(chosen))
    return texts


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, short of any row's last: generation starts from it."""
    if not rows:
        return 0
    # What the first and the last in order share, all between them share.
    first, last = min(rows, key=tuple), max(rows, key=tuple)
    alike = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    return min(alike, min(map(len, rows)) - 1)


def _prefill(model: PreTrainedModel, head: torch.Tensor) -> DynamicCache | None:
    """Keys and values of the tokens `head`, [S], for one sequence; None of no tokens."""
    if not head.numel():
        return None
    cache = DynamicCache(config=model.config)
    model(input_ids=head[None].to(model.device), past_key_values=cache, logits_to_keep=1)
    return cache


def _repeated(cache: DynamicCache | None, count: int) -> DynamicCache | None:
    """A copy of one sequence's cache for `count` sequences that begin alike."""
    if cache is None:
        return None
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(count)
    return copied


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    grader: Grader = WORDS,
    advance: Callable[[int], None] = lambda n: None,
) -> Score:
    """Generate an answer to each example and grade it."""
    texts = generate(
        model,
        tokenizer,
        [example.prompt for example in examples],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        advance=advance,
    )
    return grade(texts, examples, grader)
