"""Lengths of a run's examples, and the settings of length within the model's context."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from bmt_trainer import models
from bmt_trainer.console import Display
from bmt_trainer.data.encoding import Encoder, Learn
from bmt_trainer.data.examples import Example, Split
from bmt_trainer.data.fitting import LengthBound, answer_room
from bmt_trainer.data.labeled import LabelEncoder
from bmt_trainer.data.pairs import PairEncoder
from bmt_trainer.methods.config import TrainConfig

C = TypeVar("C", bound=TrainConfig)

#: The longest prompt that a run makes of an example.
Answered = Callable[[Example], Example]


def within_context(config: C, folder: Path, display: Display) -> C:
    """`config` with a max_length of at most the model's context, which is said if it changes.

    folder: of the checkpoint.
    """
    context = models.context_length(folder)
    if context is None or config.max_length <= context:
        return config
    display.say(
        f"max_length: {context:,} tokens, not {config.max_length:,}, which is beyond the model's "
        "context"
    )
    return dataclasses.replace(config, max_length=context)


def bound_of(
    tokenizer: PreTrainedTokenizerBase,
    most: int,
    answered: Answered | None,
    learn: Learn | None,
    preferences: Literal["pair", "label"] | None,
) -> LengthBound | None:
    """The bound of a run by what it makes of an example, or None if it cuts rows itself."""
    if answered is not None:
        return bound_of_prompts(tokenizer, most, answered)
    if learn is not None:
        return bound_of_rows(tokenizer, most, learn)
    if preferences == "pair":
        return bound_of_pairs(tokenizer, most)
    return bound_of_labeled(tokenizer, most) if preferences == "label" else None


def bound_of_prompts(
    tokenizer: PreTrainedTokenizerBase, most: int, answered: Answered
) -> LengthBound:
    """A bound on the longest prompts that are made of examples."""
    encoder = Encoder(tokenizer)
    return LengthBound(most, lambda example: len(encoder.prompt(answered(example))))


def bound_of_rows(tokenizer: PreTrainedTokenizerBase, most: int, learn: Learn) -> LengthBound:
    """A bound on rows of supervised training; of an example with several, on the shortest."""
    encoder = Encoder(tokenizer, learn)

    def length(example: Example) -> int:
        return min(len(row.input_ids) for row in encoder.encode(example))

    return LengthBound(most, length, "examples")


def bound_of_pairs(tokenizer: PreTrainedTokenizerBase, most: int) -> LengthBound:
    """A bound on the longer answer of preference pairs, with the prompt."""
    encoder = PairEncoder(tokenizer)
    return LengthBound(most, lambda example: encoder.encode(example).length, "pairs")


def bound_of_labeled(tokenizer: PreTrainedTokenizerBase, most: int) -> LengthBound:
    """A bound on labeled answers, with the prompt; of a preference pair on the longer one."""
    encoder = LabelEncoder(tokenizer)
    return LengthBound(most, lambda e: max(row.length for row in encoder.encode(e)), "rows")


def with_room(
    config: C,
    folder: Path,
    display: Display,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    answered: Answered | None,
    trained: Sequence[int],
) -> C:
    """`config` with the new tokens that the context leaves, which is said if they are fewer.

    answered: the longest prompt that is made of an example; None: the run answers held-out examples
    only, as they are; trained: lengths of these prompts of the training examples. Raises DataError
    for a prompt that leaves no room.
    """
    encoder = Encoder(tokenizer)

    def lengths() -> Iterator[tuple[str, int]]:
        for example in split.heldout:
            if example.has_prompt:  # not rows of text or of tokens
                yield example.location, len(encoder.prompt(example))
        if answered is None:
            return
        yield from zip((e.location for e in split.train), trained, strict=True)
        for example in split.heldout:
            length = len(encoder.prompt(answered(example)))
            # Longer ones are held-out demonstrations, which no teacher reads.
            if length <= config.max_length:
                yield example.location, length

    room, line = answer_room(lengths(), config.max_new_tokens, models.context_length(folder))
    if line is None:
        return config
    display.say(line)
    return dataclasses.replace(config, max_new_tokens=room)
