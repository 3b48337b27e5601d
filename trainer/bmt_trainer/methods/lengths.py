"""Lengths of a run's prompts, and the settings of length within the model's context."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from bmt_trainer import models
from bmt_trainer.console import Display
from bmt_trainer.data.encoding import render
from bmt_trainer.data.examples import Example
from bmt_trainer.data.fitting import answer_room
from bmt_trainer.methods.config import TrainConfig

C = TypeVar("C", bound=TrainConfig)


def prompt_lengths(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Example]
) -> list[tuple[str, int]]:
    """Location and number of tokens of each prompt."""
    return [(prompt.location, len(render(tokenizer, prompt))) for prompt in prompts]


def within_context(
    config: C, folder: Path, display: Display, prompts: Callable[[int], Sequence[tuple[str, int]]]
) -> C:
    """`config` with the lengths that the model's context allows, which is said if they change.

    prompts: location and tokens of each prompt that the run answers, by max_length. Raises
    DataError for a prompt that leaves no room for an answer.
    """
    context = models.context_length(folder)
    if context is not None and config.max_length > context:
        display.say(
            f"max_length: {context:,} tokens, not {config.max_length:,}, which is beyond the "
            "model's context"
        )
        config = dataclasses.replace(config, max_length=context)
    room, line = answer_room(prompts(config.max_length), config.max_new_tokens, context)
    if line is not None:
        display.say(line)
        config = dataclasses.replace(config, max_new_tokens=room)
    return config
