"""Settings that training by preferences has, of pairs and of labeled answers."""

from __future__ import annotations

from dataclasses import dataclass

from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config.training import TrainConfig
from bmt_trainer.settings import option, redefined


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(TrainConfig):
    """Settings of training by preferences. Raises ConfigError."""

    # Departure: the paper has no training by preferences; rate and β are choices of this project.

    learning_rate: float = redefined(TrainConfig, "learning_rate", 2e-4)
    gradient_accumulation: int = option("Forward passes per optimizer step.", 1, least=1)
    beta: float = option(
        "β of the loss: how little a mask that prefers as it should may differ from the base.",
        0.1,
        above=0,
    )
    max_new_tokens: int = redefined(
        TrainConfig,
        "max_new_tokens",
        64,
        "Length of the base's answers on which lean: auto measures the KL divergence, in tokens.",
    )
    eval_batch_size: int = redefined(
        TrainConfig, "eval_batch_size", 64, "Prompts at once in calibration."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        method = type(self).__name__.removesuffix("Config").lower()
        if self.thoughts is not None:
            raise ConfigError(
                f"thoughts: {self.thoughts} is for graded answers, and {method} scores answers by "
                "their log-probabilities; leave it out"
            )
