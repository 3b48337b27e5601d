"""Scores of preference pairs: how much a mask prefers the chosen answers, and how many of them.

Legend: B rows of a batch, S tokens of its longest row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from bmt_trainer.console import Display
from bmt_trainer.data.batching import pad
from bmt_trainer.data.examples import Example
from bmt_trainer.errors import NonFinite
from bmt_trainer.evaluation.intervals import interval_of_mean, wilson
from bmt_trainer.methods.run_folder import HeldoutScores, RunFolder
from bmt_trainer.models import evaluating

# Pairs of a batch: the vocabulary's logits of each answer token are in memory twice, in fp32.
_PAIRS = 4
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
            *_mean(margins),
            *_mean(gains),
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


def _mean(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The mean and its 95 % interval; equal values, as the base's, have no spread."""
    mean = math.fsum(values) / len(values)
    return mean, (mean, mean) if len(set(values)) == 1 else interval_of_mean(values)


class PairScores(HeldoutScores):
    """Held-out scores by log-probabilities of both answers; nothing is generated.

    The base has to be scored first. rows: the held-out pairs; padding: the token that fills rows.
    """

    measure = "margin"
    guessable = False

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        padding: int,
        run: RunFolder,
        display: Display,
    ) -> None:
        self._model, self._rows, self._padding = model, rows, padding
        self._run, self._display = run, display

    def __call__(self, name: str, examples: Sequence[Example] | None = None) -> None:
        """Score, show and note the score under `name`; examples: not taken. Raises NonFinite."""
        assert examples is None
        if not self._rows or name in self._run.notes:
            return
        with self._display.stage(f"evaluate {name}", len(self._rows)) as advance:
            try:
                found = log_probabilities(self._model, self._rows, self._padding, advance)
            except NonFinite as error:
                raise NonFinite(f"evaluate {name}: {error}") from None
        if name == "base":
            self._run.note(_REFERENCE, found)
        score = PairScore.of(found, self._run.notes[_REFERENCE])
        self._run.note(name, score.to_json())
        self._display.say(f"{name:<5}{score}")
        # One pair has no spread that an interval could be estimated from.
        if score.total > 1 and score.chosen_interval[1] < 0 and name != "init":
            lost = "lost more" if score.margin > 0 else "did not lose more"
            self._display.say(
                "warning: the chosen answers are less likely than by the base, by "
                f"{-score.chosen:.3g} nats, and the rejected ones {lost}. Lower learning_rate, "
                "take fewer steps or raise beta if the answers themselves matter"
            )


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    rows: Sequence[Row],
    padding: int,
    advance: Callable[[int], None] = lambda n: None,
) -> list[LogProbabilities]:
    """Log-probabilities of each pair's answers by the model as it is.

    Sums in fp64 over an answer's tokens, its end included, of fp32 log-probabilities. Raises
    NonFinite.
    """
    device = next(model.parameters()).device
    found: list[LogProbabilities] = []
    with evaluating(model):
        for at in range(0, len(rows), _PAIRS):
            batch = rows[at : at + _PAIRS]
            prompts = [row["prompt_ids"] for row in batch] * 2
            answers = [row[key] for key in ("chosen_ids", "rejected_ids") for row in batch]
            texts = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
            ids, attend = (part.to(device) for part in pad(texts, padding, "right"))  # [B, S]
            start = min(map(len, prompts)) - 1
            logits = model(
                input_ids=ids, attention_mask=attend, logits_to_keep=ids.shape[1] - start
            ).logits[:, :-1]  # of the tokens after `start`
            every = torch.log_softmax(logits.float(), -1)
            each = every.gather(-1, ids[:, start + 1 :, None]).squeeze(-1).double()
            sums = []
            for row, prompt, answer in zip(each, prompts, answers, strict=True):
                first = len(prompt) - 1 - start
                sums.append(float(row[first : first + len(answer)].sum()))
            if not all(map(math.isfinite, sums)):
                raise NonFinite("a log-probability of a held-out answer is not finite")
            found += zip(sums[: len(batch)], sums[len(batch) :], strict=True)
            advance(len(batch))
    return found
