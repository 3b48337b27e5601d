"""Scores: counts of right answers and the mean reward, with their confidence intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bmt_trainer.data.examples import Example
from bmt_trainer.errors import DataError, RewardError
from bmt_trainer.evaluation.completions import CompletionReader
from bmt_trainer.evaluation.formulas import overruns
from bmt_trainer.evaluation.generate import generate
from bmt_trainer.evaluation.graders import WORDS, Marks, Scorer
from bmt_trainer.evaluation.intervals import interval_of_mean, wilson


@dataclass(frozen=True)
class Score:
    """Counts of right answers out of `total`, and the mean reward.

    exact: right by the strict reading, a reward of at least 1; lenient: right by the lenient
    reading; mean: of the rewards in the reading that counts, by default the accuracy;
    mean_interval: its 95 % interval; graded: the rewards are a grader's, 0 or 1; cut: answers that
    ended at max_new_tokens; unfinished: answers that ended within a thought, which are wrong;
    overrun: answers that the math grader could not finish within its bounds, which are wrong.
    """

    exact: int
    lenient: int
    total: int
    mean: float = math.nan
    mean_interval: tuple[float, float] = (math.nan, math.nan)
    graded: bool = True
    cut: int = 0
    unfinished: int = 0
    overrun: int = 0

    def __post_init__(self) -> None:
        if math.isnan(self.mean):
            object.__setattr__(self, "mean", self.exact / self.total if self.total else 0.0)
            object.__setattr__(self, "mean_interval", wilson(self.exact, self.total))

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
            # Not rounded to decimals: masks are chosen by it, and rewards may be small.
            "mean": _significant(self.mean),
            "mean_interval95": [_significant(bound) for bound in self.mean_interval],
            "cut": self.cut,
            "unfinished_thoughts": self.unfinished,
            **({"overrun": self.overrun} if self.overrun else {}),
        }

    def __str__(self) -> str:
        low, high = self.interval
        least, most = self.mean_interval
        mean = "" if self.graded else f"{self.mean:.4g} [{least:.4g}, {most:.4g}] mean reward, "
        return (
            f"{mean}{self.accuracy:6.1%} [{low:.1%}, {high:.1%}] exact, "
            f"{self.lenient / self.total:6.1%} lenient, n = {self.total}, cut: {self.cut}"
            + (f", unfinished thoughts: {self.unfinished}" if self.unfinished else "")
            + (f", {overruns.described(self.overrun)}" if self.overrun else "")
        )


def require_answers(examples: Sequence[Example], scorer: Scorer, fix: str) -> None:
    """Raise DataError for a row that cannot be answered, or whose answer cannot be graded.

    A reward of a user's own may need no answer. fix: what to set instead.
    """
    for example in examples:
        if not example.has_prompt:
            raise DataError(f"{example.where}text and tokens have no prompt to answer; {fix}")
        if scorer.comparing and not example.answer.strip():
            raise DataError(
                f"{example.where}the row has no answer that the grader {scorer.comparing} can "
                f"compare with; add a column `answer`, or {fix}"
            )


def _significant(value: float) -> float:
    """Twelve digits: what sums in another order still agree on."""
    return float(f"{value:.12g}")


def grade(completions: Sequence[str], examples: Sequence[Example], scorer: Scorer = WORDS) -> Score:
    """Score one completion per example. Raises RewardError."""
    return score_of(scorer.marks(completions, examples), scorer.name)


def score_of(marks: Marks, name: str) -> Score:
    """The score of values; name: of their scorer, for RewardError if no value is a number."""
    total = len(marks.chosen)
    values = [value for value in marks.chosen if value is not None]
    if total and not values:
        raise RewardError(
            f"reward {name}: None, not applicable, for each of the {total} answers; a score needs "
            "a number for one at least"
        )
    return Score(
        sum(map(is_right, marks.strict)),
        sum(map(is_right, marks.lenient)),
        total,
        math.fsum(values) / len(values) if values else 0.0,
        interval_of_mean(values),
        marks.graded,
        marks.cut,
        marks.unfinished,
        marks.overrun,
    )


def is_right(value: float | None) -> bool:
    """A value counts as right from 1 on."""
    return value is not None and value >= 1


def outcomes(
    completions: Sequence[str],
    examples: Sequence[Example],
    scorer: Scorer = WORDS,
    *,
    lenient: bool = False,
) -> list[bool]:
    """True for each completion that is right by the strict or the lenient reading."""
    marks = scorer.marks(completions, examples)
    return list(map(is_right, marks.lenient if lenient else marks.strict))


def best_guess(
    train: Sequence[Example], heldout: Sequence[Example], scorer: Scorer = WORDS
) -> Score:
    """Score of the most frequent training answer given to every held-out example."""
    if not train:
        return Score(0, 0, len(heldout))
    guess = Counter(example.answer for example in train).most_common(1)[0][0]
    return grade([guess] * len(heldout), heldout, scorer)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 64,
    scorer: Scorer = WORDS,
    advance: Callable[[int], None] = lambda n: None,
    reader: CompletionReader | None = None,
) -> Score:
    """Generate a greedy answer to each example and grade it. reader: as in `generate`."""
    texts = generate(
        model,
        tokenizer,
        examples,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        advance=advance,
        reader=reader,
    )
    return grade(texts, examples, scorer)
