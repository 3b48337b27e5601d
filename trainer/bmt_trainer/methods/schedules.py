"""Steps of a run, also by epochs, and the schedule of its learning rate over them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import torch
from transformers import get_scheduler

from bmt_trainer.data import sources
from bmt_trainer.errors import ConfigError
from bmt_trainer.methods.config import TrainConfig
from bmt_trainer.methods.pipeline import Inputs, Loaded

C = TypeVar("C", bound=TrainConfig)

# More examples than a data set has.
_ALL = 1 << 30
# Steps whose rates are looked at before a run.
_SHOWN = 10_000


def wanted(config: TrainConfig, a_step: int) -> int:
    """The number of training examples to read, without those for validation.

    a_step: examples of one step. By epochs all that there are. Raises ConfigError for a data set
    without end.
    """
    if config.train_examples is not None:
        return config.train_examples
    if config.epochs is None:
        return max(config.steps * a_step, config.calibration_prompts)
    if (endless := sources.endless(config.dataset)) is not None:
        raise ConfigError(
            f"epochs: {endless} has no end that is known; set train_examples, the examples of an "
            "epoch, or steps"
        )
    return _ALL


def with_steps(inputs: Inputs, a_epoch: int, of: str) -> Inputs:
    """`inputs` whose configuration has the run's steps, in place of its epochs, which is said.

    a_epoch: steps of an epoch; of: what it counts, in words. Raises ConfigError for a schedule that
    does not take its arguments.
    """
    config = inputs.config
    if config.epochs is not None:
        steps = max(1, math.ceil(config.epochs * a_epoch - 1e-9))
        inputs.display.say(f"{steps:,} steps: {config.epochs:g} epochs of {of}")
        config = dataclasses.replace(config, steps=steps, epochs=None)
        inputs = dataclasses.replace(inputs, config=config)
    if config.steps:
        _check(config)
    return inputs


def of_run(config: C, loaded: Loaded) -> C:
    """`config` with the steps that the loaded run has."""
    if config.epochs is None:
        return config
    return dataclasses.replace(config, steps=loaded.config.steps, epochs=None)


def arguments(config: TrainConfig) -> dict[str, Any]:
    """The settings of a trainer's learning rate and steps."""
    return {
        "max_steps": config.steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "lr_scheduler_kwargs": dict(config.lr_scheduler_kwargs or {}),
        "warmup_steps": warmup_steps(config),
    }


def warmup_steps(config: TrainConfig) -> int:
    """Steps in which the rate rises, as transformers counts them, but for the last step.

    The first rate is 0, so that a rise over all steps would teach nothing in a run of one.
    """
    # Departure: the paper's rates are constant, but for SDFT's, whose warm-up is a share of steps.
    steps = math.ceil(config.warmup * config.steps) if config.warmup < 1 else int(config.warmup)
    return max(0, min(steps, config.steps - 1))


def _check(config: TrainConfig) -> None:
    """Raise ConfigError for arguments that the schedule refuses, or that give no rate.

    No rate is above learning_rate, of a schedule the greatest.
    """
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=config.learning_rate)
    given = dict(config.lr_scheduler_kwargs or {})
    try:
        scheduler: Any = get_scheduler(
            config.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup_steps(config),
            num_training_steps=config.steps,
            scheduler_specific_kwargs=given,
        )
        # A factor of each step; of a long run some thousands show it.
        [factor] = scheduler.lr_lambdas
        every = {*range(0, config.steps, max(1, config.steps // _SHOWN)), config.steps - 1}
        rates = [config.learning_rate * factor(step) for step in sorted(every)]
        factor(config.steps)  # asked for after the last step
    except Exception as error:  # whatever a schedule raises
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"lr_scheduler_kwargs: {given or 'none'}: the schedule {config.lr_scheduler_type} of "
            f"transformers does not take them ({why})"
        ) from None
    most = config.learning_rate * (1 + 1e-9)
    bad = next((r for r in rates if isinstance(r, complex) or not 0 <= r <= most), None)
    if bad is not None or not any(rates):
        raise ConfigError(
            f"lr_scheduler_kwargs: {given or 'none'}: the schedule {config.lr_scheduler_type} "
            f"gives the learning rate {0 if bad is None else bad} "
            f"{'in all' if bad is None else 'in one'} of {config.steps:,} steps, where rates are "
            f"from 0 to learning_rate {config.learning_rate:g}; change its arguments or warmup"
        )
