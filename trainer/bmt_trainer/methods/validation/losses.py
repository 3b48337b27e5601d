"""Losses of rows that are set aside, by the log-probabilities of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bmt_trainer.evaluation.intervals import interval_of_mean
from bmt_trainer.methods.validation.log_probabilities import log_probabilities


@dataclass(frozen=True, slots=True)
class Loss:
    """A mean loss over `total` rows, in nats, with its 95 % interval."""

    loss: float
    interval: tuple[float, float]
    total: int

    @classmethod
    def of(cls, losses: Sequence[float]) -> Loss:
        """The mean of the losses of rows, not empty."""
        mean = sum(losses) / len(losses)
        spread = interval_of_mean(losses) if len(set(losses)) > 1 else (mean, mean)
        return cls(mean, spread, len(losses))

    def to_json(self) -> dict[str, Any]:
        """The loss as it stands in a run's notes and in its history."""
        return {
            "loss": float(f"{self.loss:.12g}"),
            "loss_interval95": [float(f"{bound:.12g}") for bound in self.interval],
            "total": self.total,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"validation loss {self.loss:.4g} [{low:.4g}, {high:.4g}], n = {self.total}"


def of_completions(
    model: nn.Module, rows: Sequence[Mapping[str, Sequence[int]]], padding: int
) -> Loss:
    """The mean over all learnt tokens of rows of supervised training: its loss, in nats a token.

    The interval is that of a ratio of two means, loss and tokens of a row.
    """
    scored = [(row["input_ids"], row["completion_mask"]) for row in rows]
    sums = log_probabilities(model, scored, padding)
    tokens = [sum(mask[1:]) for _, mask in scored]  # nothing predicts the first
    mean = -sum(sums) / sum(tokens)
    a_row = sum(tokens) / len(tokens)
    return Loss.of([mean + (-s - mean * n) / a_row for s, n in zip(sums, tokens, strict=True)])
