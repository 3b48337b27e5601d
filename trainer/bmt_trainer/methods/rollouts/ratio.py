"""The policy that sampled, in the ratio of Eq. 3: the hard mask as it was at the rollouts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bmt_trainer.masking.attach import Attached


class RolloutPolicy:
    """Mixin before `HardRollouts`: log-probabilities of a step's completions under the hard mask.

    They are the denominator of Eq. 3's ratio, π_old, as its rollouts are hard (section 4) and its
    numerator, π_θ, is soft (Eq. 6). By default TRL leaves them out and divides π_θ by itself, as
    long as there is one optimizer step for each batch of rollouts (TRL 1.16,
    trainer/grpo_trainer.py, `_compute_loss`: `old_per_token_logps`). They are computed by the pass
    of the loss and not by the sampler: its sums have other orders, and a server's another dtype,
    so that equal masks would not have the ratio 1. Without masked layers π_old is π_θ.
    """

    attached: Attached

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        trainer: Any = self
        made: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        # A baseline's policy has no mask, and evaluation has no loss.
        if self.attached.layers and trainer.model.training:
            made["old_per_token_logps"] = self._hard_log_probabilities(made)
        return made

    @torch.no_grad()
    def _hard_log_probabilities(self, made: dict[str, Any]) -> Tensor:
        """log π_old of each token [B, T], at the sampling temperature."""
        trainer: Any = self
        parts = ("prompt_ids", "completion_ids"), ("prompt_mask", "completion_mask")
        ids, attend = (torch.cat([made[name] for name in names], dim=1) for names in parts)
        with self.attached.state.use("hard"):
            log_p: Tensor = trainer._get_per_token_logps_and_entropies(
                trainer.model,
                ids,
                attend,
                made["completion_ids"].shape[1],
                batch_size=trainer.args.per_device_train_batch_size,
            )[0]
        return log_p
