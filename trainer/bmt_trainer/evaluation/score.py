"""Scores: counts of right answers by a grader, with their confidence interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer.data.examples import Example
from bmt_trainer.errors import DataError
from bmt_trainer.evaluation.generate import generate
from bmt_trainer.evaluation.graders import GRADERS, WORDS, Grader
from bmt_trainer.evaluation.intervals import wilson


@dataclass(frozen=True)
class Score:
    """Counts of right answers out of `total`.

    exact: right by the grader's strict reading; lenient: right by its lenient reading.
    """

    exact: int
    lenient: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share of exact answers, 0 to 1."""
        return self.exact / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the accuracy."""
        return wilson(self.exact, self.total)

    def to_json(self) -> dict[str, Any]:
        """The score as it stands in a mask's metadata and in results."""
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


def require_answers(examples: Sequence[Example], grader: Grader, fix: str) -> None:
    """Raise DataError for a row that cannot be answered, or whose answer cannot be graded.

    A grader of a user's own may need no answer. fix: what to set instead.
    """
    for example in examples:
        where = f"{example.location}: " if example.location else ""
        if not example.has_prompt:
            raise DataError(f"{where}text and tokens have no prompt to answer; {fix}")
        if grader.name in GRADERS and not example.answer.strip():
            raise DataError(
                f"{where}the row has no answer that the grader {grader.name} can compare with; "
                f"add a column `answer`, or {fix}"
            )


def grade(completions: Sequence[str], examples: Sequence[Example], grader: Grader = WORDS) -> Score:
    """Score one completion per example."""
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
    """True for each completion that is right by the grader's strict or lenient reading."""
    judge = grader.lenient if lenient else grader.strict
    pairs = zip(completions, examples, strict=True)
    return [judge(text, example.answer) >= 1 for text, example in pairs]


def best_guess(
    train: Sequence[Example], heldout: Sequence[Example], grader: Grader = WORDS
) -> Score:
    """Score of the most frequent training answer given to every held-out example."""
    if not train:
        return Score(0, 0, len(heldout))
    guess = Counter(example.answer for example in train).most_common(1)[0][0]
    return grade([guess] * len(heldout), heldout, grader)


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
    """Generate a greedy answer to each example and grade it."""
    texts = generate(
        model,
        tokenizer,
        examples,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        advance=advance,
    )
    return grade(texts, examples, grader)
