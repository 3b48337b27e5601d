"""Scores of labeled answers: how far a mask moves them from the base, as they are labeled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bmt_trainer.evaluation.intervals import wilson
from bmt_trainer.methods.preferences.scores import PreferenceScores, answer, mean_of
from bmt_trainer.methods.validation import log_probabilities as answers


@dataclass(frozen=True, slots=True)
class LabelScore:
    """Movement of a policy from the base on `total` answers, of which `wanted` are wanted.

    right: answers that moved as labeled: wanted ones are likelier than by the base, others less
    likely. gain: mean of log p - log p of the base, in nats, negated for unwanted answers; up,
    down: means of log p - log p of the base of wanted and of unwanted answers, in nats, None
    without any; each with its 95 % interval.
    """

    right: int
    total: int
    wanted: int
    gain: float
    gain_interval: tuple[float, float]
    up: tuple[float, tuple[float, float]] | None
    down: tuple[float, tuple[float, float]] | None

    @classmethod
    def of(
        cls, policy: Sequence[float], base: Sequence[float], wanted: Sequence[bool]
    ) -> LabelScore:
        """The score by log-probabilities of the same answers in one order, not empty."""
        ratios = [now - before for now, before in zip(policy, base, strict=True)]
        pairs = list(zip(ratios, wanted, strict=True))
        signed = [ratio if good else -ratio for ratio, good in pairs]
        up = [ratio for ratio, good in pairs if good]
        down = [ratio for ratio, good in pairs if not good]
        return cls(
            sum(value > 0 for value in signed),
            len(signed),
            len(up),
            *mean_of(signed),
            mean_of(up) if up else None,
            mean_of(down) if down else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The score as it stands in a mask's metadata and in results."""
        found: dict[str, Any] = {
            "right": self.right,
            "total": self.total,
            "accuracy": round(self.right / self.total, 6),
            "interval95": [round(bound, 6) for bound in wilson(self.right, self.total)],
            "labeled_wanted": self.wanted,
        }
        means = {
            "gain": (self.gain, self.gain_interval),
            "wanted": self.up,
            "unwanted": self.down,
        }
        for name, mean in means.items():
            if mean is not None:
                found[name] = float(f"{mean[0]:.12g}")
                found[f"{name}_interval95"] = [float(f"{bound:.12g}") for bound in mean[1]]
        return found

    def __str__(self) -> str:
        low, high = wilson(self.right, self.total)
        least, most = self.gain_interval
        means = ", ".join(
            f"{name} {mean[0]:+.4g}"
            for name, mean in (("wanted", self.up), ("unwanted", self.down))
            if mean is not None
        )
        return (
            f"{self.right / self.total:6.1%} [{low:.1%}, {high:.1%}] moved as labeled, gain "
            f"{self.gain:.4g} [{least:.4g}, {most:.4g}] nats ({means}), n = {self.total}"
        )


class LabelScores(PreferenceScores):
    """Held-out scores by log-probabilities of labeled answers; nothing is generated."""

    measure = "gain"

    def log_probabilities(self, advance: Callable[[int], None]) -> list[float]:
        rows = [answer(row, "completion_ids") for row in self._rows]
        return answers.log_probabilities(self._model, rows, self._padding, advance)

    def score_of(self, found: Any, base: Any) -> LabelScore:
        return LabelScore.of(found, base, [bool(row["label"]) for row in self._rows])

    def warning(self, score: Any) -> str | None:
        if score.up is None or score.wanted < 2 or score.up[1][1] >= 0:
            return None
        return (
            f"the wanted answers are less likely than by the base, by {-score.up[0]:.3g} nats. "
            "Lower learning_rate, take fewer steps, or raise desirable_weight or beta"
        )
