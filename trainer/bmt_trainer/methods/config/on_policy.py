"""Settings that GRPO and SDFT share, which train on the model's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config.training import TrainConfig
from bmt_trainer.settings import option, redefined


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig(TrainConfig):
    """Settings of the methods that train on the model's own answers. Raises ConfigError."""

    # Departure: the best mask by training examples; the paper's by the evaluation set.

    alpha_end: float = redefined(TrainConfig, "alpha_end", 1e4)
    max_new_tokens: int = option(
        "Length of an answer, in rollouts and in evaluation, in tokens.", 4096, least=1
    )
    prompts_per_step: int = option("Prompts of one optimizer step.", 64, least=1)
    micro_batch: int = option("Completions per forward pass of the loss.", 16, least=1)
    temperature: float = option("Sampling temperature of the rollouts.", 1.0, above=0)
    reading: Literal["strict", "lenient"] = option(
        "The reading of the grader that chooses masks; both are reported.", "strict"
    )
    heldout_dataset: str | None = option("Hold out from this data set instead.", None, joined=True)
    validation: int = option(
        "Training examples set aside to choose the best mask by; 0 for none.", 100, least=0
    )
    validate_every: int = option("Steps between validations, greedy, hard mask.", 25, least=1)
    select: Literal["best", "last"] = option("The mask that is written.", "best")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heldout_dataset is not None and not self.heldout:
            raise ConfigError(
                f"heldout_dataset: {self.heldout_dataset} holds nothing out with heldout 0; set "
                "heldout, or leave it out"
            )
        if self.heldout_dataset is not None and self.heldout_share is not None:
            raise ConfigError(
                f"heldout_share: {self.heldout_share} is a share of dataset, and heldout_dataset "
                f"{self.heldout_dataset} takes its place; set heldout instead"
            )
