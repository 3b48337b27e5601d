"""Settings of training by labeled answers."""

from __future__ import annotations

from dataclasses import dataclass

from bmt_trainer.methods.config.preferences import PreferenceConfig
from bmt_trainer.methods.config.training import TrainConfig
from bmt_trainer.settings import option, redefined


@dataclass(frozen=True, kw_only=True)
class KtoConfig(PreferenceConfig):
    """Settings of `kto.train`. The paper has no such method. Raises ConfigError."""

    batch_size: int = option(
        "Answers per forward pass; their mean divergence is the point of reference, over all "
        "processes.",
        8,
        least=2,
    )
    desirable_weight: float = option("Weight of the loss of wanted answers.", 1.0, above=0)
    undesirable_weight: float = option("Weight of the loss of unwanted answers.", 1.0, above=0)
    heldout: int = redefined(
        TrainConfig,
        "heldout",
        400,
        "Prompts set aside for evaluation, an answer of each label; 0 for none.",
    )
    max_length: int = redefined(
        TrainConfig,
        "max_length",
        1024,
        "Answers that are longer, with their prompt, are left out, in tokens.",
    )
