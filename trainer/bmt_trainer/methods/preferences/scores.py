"""Scores of preference pairs: how much a mask prefers the chosen answers, and how many of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bmt_trainer.console import Display
from bmt_trainer.data.examples import Example
from bmt_trainer.errors import NonFinite
from bmt_trainer.evaluation.intervals import interval_of_mean, wilson
from bmt_trainer.methods.run_folder import HeldoutScores, RunFolder
from bmt_trainer.methods.validation import log_probabilities as answers

# The note of a run that holds the base's log-probabilities of its held-out pairs.
_REFERENCE = "reference_log_probabilities"

#: Log-probabilities of a pair's two answers, chosen and rejected, sums over tokens in nats.
LogProbabilities = tuple[float, float]
#: A pair's token ids: `prompt_ids`, `chosen_ids`, `rejected_ids`.
Row = Mapping[str, list[int]]


@dataclass(frozen=True, slots=True)
class PairScore:
    """Preferences of a policy on `total` pairs.

    right: pairs whose chosen answer is the likelier one; margin: mean of log p(chosen) -
    log p(rejected) less the same of the base, in nats, which DPO's loss takes times β (Rafailov et
    al. 2023, Eq. 7); chosen: mean of log p(chosen) less the base's, in nats, which falls if the
    loss is lowered by making both answers unlikely; each with its 95 % interval; above_base: pairs
    whose margin is above 0.
    """

    right: int
    above_base: int
    total: int
    margin: float
    margin_interval: tuple[float, float]
    chosen: float
    chosen_interval: tuple[float, float]

    @classmethod
    def of(cls, policy: Sequence[LogProbabilities], base: Sequence[LogProbabilities]) -> PairScore:
        """The score by log-probabilities of the same pairs in one order, not empty."""
        differences = [chosen - rejected for chosen, rejected in policy]
        margins = [
            difference - (chosen - rejected)
            for difference, (chosen, rejected) in zip(differences, base, strict=True)
        ]
        gains = [one - before for (one, _), (before, _) in zip(policy, base, strict=True)]
        return cls(
            sum(difference > 0 for difference in differences),
            sum(margin > 0 for margin in margins),
            len(margins),
            *mean_of(margins),
            *mean_of(gains),
        )

    def to_json(self) -> dict[str, Any]:
        """The score as it stands in a mask's metadata and in results."""
        above = wilson(self.above_base, self.total)
        return {
            "right": self.right,
            "total": self.total,
            "accuracy": round(self.right / self.total, 6),
            "interval95": [round(bound, 6) for bound in wilson(self.right, self.total)],
            "margin": float(f"{self.margin:.12g}"),
            "margin_interval95": [float(f"{bound:.12g}") for bound in self.margin_interval],
            "chosen": float(f"{self.chosen:.12g}"),
            "chosen_interval95": [float(f"{bound:.12g}") for bound in self.chosen_interval],
            "above_base": round(self.above_base / self.total, 6),
            "above_base_interval95": [round(bound, 6) for bound in above],
        }

    def __str__(self) -> str:
        low, high = wilson(self.right, self.total)
        least, most = self.margin_interval
        return (
            f"{self.right / self.total:6.1%} [{low:.1%}, {high:.1%}] prefer the chosen answer, "
            f"margin {self.margin:.4g} [{least:.4g}, {most:.4g}] nats, chosen answers "
            f"{self.chosen:+.4g} nats, n = {self.total}"
        )


def mean_of(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The mean and its 95 % interval; equal values, as the base's, have no spread."""
    mean = math.fsum(values) / len(values)
    return mean, (mean, mean) if len(set(values)) == 1 else interval_of_mean(values)


class PreferenceScores(HeldoutScores):
    """Held-out scores by log-probabilities of given answers; nothing is generated.

    The base has to be scored first. rows: the held-out ones; padding: the token that fills rows.
    """

    guessable = False

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Mapping[str, Any]],
        padding: int,
        run: RunFolder,
        display: Display,
    ) -> None:
        self._model, self._rows, self._padding = model, rows, padding
        self._run, self._display = run, display

    def log_probabilities(self, advance: Callable[[int], None]) -> Any:
        """Log-probabilities of the rows by the model as it is, as JSON. Raises NonFinite."""
        raise NotImplementedError

    def score_of(self, found: Any, base: Any) -> Any:
        """The score by log-probabilities of the policy and of the base."""
        raise NotImplementedError

    def warning(self, score: Any) -> str | None:
        """A warning on a trained mask's score, or None."""
        raise NotImplementedError

    def __call__(self, name: str, examples: Sequence[Example] | None = None) -> None:
        """Score, show and note the score under `name`; examples: not taken. Raises NonFinite."""
        assert examples is None
        if not self._rows or name in self._run.notes:
            return
        with self._display.stage(f"evaluate {name}", len(self._rows)) as advance:
            try:
                found = self.log_probabilities(advance)
            except NonFinite as error:
                raise NonFinite(f"evaluate {name}: {error}") from None
        if name == "base":
            self._run.note(_REFERENCE, found)
        score = self.score_of(found, self._run.notes[_REFERENCE])
        self._run.note(name, score.to_json())
        self._display.say(f"{name:<5}{score}")
        if name != "init" and (warning := self.warning(score)) is not None:
            self._display.say(f"warning: {warning}")


class PairScores(PreferenceScores):
    """Held-out scores by log-probabilities of both answers of pairs."""

    measure = "margin"

    def log_probabilities(self, advance: Callable[[int], None]) -> list[LogProbabilities]:
        return log_probabilities(self._model, self._rows, self._padding, advance)

    def score_of(self, found: Any, base: Any) -> PairScore:
        return PairScore.of(found, base)

    def warning(self, score: Any) -> str | None:
        # One pair has no spread that an interval could be estimated from.
        if score.total < 2 or score.chosen_interval[1] >= 0:
            return None
        lost = "lost more" if score.margin > 0 else "did not lose more"
        return (
            "the chosen answers are less likely than by the base, by "
            f"{-score.chosen:.3g} nats, and the rejected ones {lost}. Lower learning_rate, "
            "take fewer steps or raise beta if the answers themselves matter"
        )


def log_probabilities(
    model: nn.Module,
    rows: Sequence[Row],
    padding: int,
    advance: Callable[[int], None] = lambda n: None,
) -> list[LogProbabilities]:
    """Log-probabilities of each pair's answers by the model as it is.

    Sums in fp64 over an answer's tokens, its end included, of fp32 log-probabilities, in memory
    that neither answers nor vocabulary exceed. Raises NonFinite.
    """
    every = [answer(row, key) for row in rows for key in ("chosen_ids", "rejected_ids")]
    pairs = _Halved(advance)
    found = answers.log_probabilities(model, every, padding, pairs)
    return list(zip(found[::2], found[1::2], strict=True))


def answer(row: Mapping[str, Any], key: str) -> answers.Scored:
    """The answer `key` of a row after its prompt; the answer's tokens count."""
    prompt, ids = row["prompt_ids"], row[key]
    return [*prompt, *ids], [0] * len(prompt) + [1] * len(ids)


class _Halved:
    """Progress of pairs by that of their answers, of which a batch may hold an odd number."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._done = advance, 0

    def __call__(self, count: int) -> None:
        before, self._done = self._done, self._done + count
        self._advance(self._done // 2 - before // 2)
