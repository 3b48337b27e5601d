"""Examples of a run's `validation_dataset`."""

from __future__ import annotations

from collections.abc import Sequence

from bmt_trainer.data import sources
from bmt_trainer.data.examples import Example
from bmt_trainer.data.fitting import LengthBound
from bmt_trainer.errors import DataError
from bmt_trainer.methods.config import TrainConfig


def validation_examples(
    config: TrainConfig, bound: LengthBound | None, preferences: str | None
) -> Sequence[Example]:
    """The examples of `validation_dataset`, all that are wanted of it. Raises DataError.

    They go before the training examples, where `of_run` sets aside.
    """
    if config.validation_dataset is None:
        return []
    found = sources.load(
        config.validation_dataset,
        heldout=0,
        train=config.validation,
        seed=config.seed,
        system=config.system,
        bound=bound,
        pairs=preferences == "pair",
        labels=preferences == "label",
    ).train
    if len(found) < config.validation:
        raise DataError(
            f"validation: {config.validation_dataset} has {len(found)} examples of at most "
            f"{config.max_length} tokens, and {config.validation} are to be set aside; set fewer, "
            "or raise max_length"
        )
    return found
