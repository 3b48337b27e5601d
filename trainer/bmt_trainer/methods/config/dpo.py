"""Settings of training by preference pairs."""

from __future__ import annotations

from dataclasses import dataclass

from bmt_trainer.methods.config.preferences import PreferenceConfig
from bmt_trainer.methods.config.training import TrainConfig
from bmt_trainer.settings import option, redefined


@dataclass(frozen=True, kw_only=True)
class DpoConfig(PreferenceConfig):
    """Settings of `dpo.train`. The paper has no such method. Raises ConfigError."""

    batch_size: int = option("Pairs per forward pass, each of two answers.", 4, least=1)
    heldout: int = redefined(
        TrainConfig, "heldout", 400, "Prompts set aside for evaluation, a pair of each; 0 for none."
    )
    max_length: int = redefined(
        TrainConfig,
        "max_length",
        1024,
        "Pairs of which an answer, with its prompt, is longer are left out, in tokens.",
    )
