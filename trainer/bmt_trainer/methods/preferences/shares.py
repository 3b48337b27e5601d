"""Shares of pairs: several processes take one step on the pairs of one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from bmt_trainer.distributed import total
from bmt_trainer.methods.trl_mixins import SharedRows
from bmt_trainer.process import world_size

# Means over a batch's pairs that TRL gathers; the others are sums over tokens that count.
_MEANS = (
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected"),
)
_TOKENS = 4  # of an idle pair's two rows


class SharedPairs(SharedRows):
    """Mixin before `AgainstBase` and TRL's `DPOTrainer`: a pair weighs the same in each process.

    TRL takes the mean over a process's pairs, and gathers a figure of each, so all processes must
    have as many: the short batch at an epoch's end is filled with idle pairs of empty answers.
    Their log-probabilities are 0 under the mask and under the base, their loss is -log σ(0) and
    their gradient 0; loss and figures are then those of the real pairs. TRL 1.16,
    trainer/dpo_trainer.py: `_compute_loss`, of the loss "sigmoid".
    """

    # Departure: accelerate fills TRL's short batch with pairs from the epoch's beginning.

    def collate_share(self, row: Any) -> Callable[[Sequence[Any]], dict[str, Any]]:
        trainer: Any = self
        collate, size = trainer.data_collator, trainer.args.per_device_train_batch_size
        idle = {"prompt_ids": row["prompt_ids"][:1] * 2, "chosen_ids": [], "rejected_ids": []}

        def collated(rows: Sequence[Any]) -> dict[str, Any]:
            batch: dict[str, Any] = collate([*rows, *[idle] * (size - len(rows))])
            return batch

        return collated

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)  # type: ignore[misc]
        if world_size() == 1:
            return loss
        answered = inputs["completion_mask"].any(-1)  # [2B], chosen answers first
        pairs = len(answered) // 2
        here = int(answered.sum()) // 2
        real, every = total(here, answered.device), pairs * world_size()
        if real == every:
            return loss
        trainer: Any = self
        figures = trainer._metrics["train"]
        for name in _MEANS:
            figures[name][-1] *= every / real
        trainer._total_train_tokens -= _TOKENS * (every - real)
        figures["num_tokens"] = [trainer._total_train_tokens]
        # The mean over the processes of this is the mean over the real pairs.
        return (loss * pairs - (pairs - here) * math.log(2)) * world_size() / real
