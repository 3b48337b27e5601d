"""Validation of a run by the loss of examples that are set aside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bmt_trainer.data.examples import Example
from bmt_trainer.errors import DataError
from bmt_trainer.masking.attach import Attached
from bmt_trainer.methods import pipeline
from bmt_trainer.methods.config import TrainConfig
from bmt_trainer.methods.pipeline import Inputs, Loaded, Rows
from bmt_trainer.methods.validation.callback import LOSS, Validation
from bmt_trainer.methods.validation.losses import Loss


def set_aside(config: TrainConfig, inputs: Inputs) -> tuple[list[Example], list[Example]]:
    """The examples for validation, and those to train on, none with a prompt of the former.

    Raises DataError if none is left to train on.
    """
    every = inputs.split.train
    validation = every[: config.validation]
    prompts = {example.key for example in validation}
    rest = every[config.validation :]
    train = [example for example in rest if example.key not in prompts]
    if not train and every:
        raise DataError(
            f"validation: {config.validation} of the {len(every)} training examples of "
            f"{config.dataset} are set aside, and none is left to train on; set fewer"
        )
    if left_out := len(rest) - len(train):
        inputs.display.say(
            f"left out {left_out:,} training examples: other answers of prompts for validation"
        )
    return validation, train


def by_loss(loaded: Loaded, attached: Attached, loss: Callable[[Rows], Loss]) -> Validation:
    """The callback that computes the loss of the rows set aside, of the hard mask."""
    config = loaded.config
    return Validation(
        loaded.validation,
        every=config.validate_every,
        attached=attached,
        run=loaded.run,
        score=loss,
        export=partial(pipeline.current_mask, loaded, attached),
        write=pipeline.write_mask,
        say=loaded.display.say,
        measure=LOSS,
        patience=config.patience,
    )


def choose(loaded: Loaded, attached: Attached, validation: Validation) -> dict[str, Any]:
    """Set the gates to the mask of `select`; what the mask's metadata says of it.

    The last mask is scored too if another is chosen: what selection does to a score is seen then.
    """
    found: dict[str, Any] = {}
    if validation.stopped:
        found["stopped_at"] = validation.scores[-1]["step"]
    if loaded.config.select != "best" or (step := validation.best_step) is None:
        return found
    if step != validation.scores[-1]["step"]:
        with attached.state.use("hard"):
            loaded.score("last")
    validation.load_best()
    return {**found, "step": step}
