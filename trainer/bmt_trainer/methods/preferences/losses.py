"""Losses of preference rows that are set aside, against the base as the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods.config import DpoConfig, KtoConfig
from bmt_trainer.methods.pipeline import Rows
from bmt_trainer.methods.preferences.scores import answer, log_probabilities
from bmt_trainer.methods.validation import log_probabilities as answers
from bmt_trainer.methods.validation.losses import Loss


class PairLoss:
    """DPO's loss of pairs (Rafailov et al. 2023, Eq. 7) by a mask, in fp64."""

    def __init__(self, config: DpoConfig, model: nn.Module, attached: Attached, padding: int):
        self._beta, self._model = config.beta, model
        self._attached, self._padding = attached, padding
        self._base: list[tuple[float, float]] | None = None

    def __call__(self, rows: Rows) -> Loss:
        """The mean loss of the model as it is; the base is asked once. Raises NonFinite."""
        if self._base is None:
            with self._attached.state.use("off"):
                self._base = log_probabilities(self._model, rows, self._padding)
        found = log_probabilities(self._model, rows, self._padding)
        margins = [
            (chosen - rejected) - (chosen0 - rejected0)
            for (chosen, rejected), (chosen0, rejected0) in zip(found, self._base, strict=True)
        ]
        return Loss.of([softplus(-self._beta * margin) for margin in margins])


class LabelLoss:
    """KTO's loss of labeled answers (Ethayarajh et al. 2024, Eq. 7) by a mask, in fp64.

    The point of reference is the mean over all rows, where training takes that of a batch.
    """

    def __init__(self, config: KtoConfig, model: nn.Module, attached: Attached, padding: int):
        self._config, self._model = config, model
        self._attached, self._padding = attached, padding
        self._base: tuple[list[float], list[float]] | None = None

    def __call__(self, rows: Rows) -> Loss:
        """The mean loss of the model as it is; the base is asked once. Raises NonFinite.

        rows: with `KL_completion_ids`, an answer to another prompt.
        """
        if self._base is None:
            with self._attached.state.use("off"):
                self._base = self._log_probabilities(rows)
        found, others = self._log_probabilities(rows)
        ratios = [now - before for now, before in zip(found, self._base[0], strict=True)]
        apart = [now - before for now, before in zip(others, self._base[1], strict=True)]
        point = max(0.0, math.fsum(apart) / len(apart))
        wanted = [bool(row["label"]) for row in rows]
        return Loss.of(kto_losses(ratios, wanted, point, self._config))

    def _log_probabilities(self, rows: Rows) -> tuple[list[float], list[float]]:
        found = [
            answers.log_probabilities(self._model, [answer(r, key) for r in rows], self._padding)
            for key in ("completion_ids", "KL_completion_ids")
        ]
        return found[0], found[1]


def kto_losses(
    ratios: Sequence[float], wanted: Sequence[bool], point: float, config: KtoConfig
) -> list[float]:
    """The weighted loss of each answer.

    ratios: log p - log p of the base, in nats; point: the point of reference, in nats.
    """
    beta = config.beta
    return [
        config.desirable_weight * (1 - sigmoid(beta * (ratio - point)))
        if good
        else config.undesirable_weight * (1 - sigmoid(beta * (point - ratio)))
        for ratio, good in zip(ratios, wanted, strict=True)
    ]


def with_partners(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a batch, each with an answer of the batch to another prompt (`KL_…`).

    The nearest before it, in a circle; without another prompt the one before it. On them the
    divergence from the base is estimated.
    """
    made = []
    for at, row in enumerate(batch):
        before = [batch[at - back] for back in range(1, len(batch))] or [row]
        others = (other for other in before if other["prompt_ids"] != row["prompt_ids"])
        made.append({**row, "KL_completion_ids": next(others, before[0])["completion_ids"]})
    return made


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), of any size."""
    return math.exp(-softplus(-x))


def softplus(x: float) -> float:
    """log(1 + exp(x)), of any size: -log σ(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
