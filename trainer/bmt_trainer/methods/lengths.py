"""Lengths of a run's prompts, and the settings of length within the model's context."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from bmt_trainer import models
from bmt_trainer.console import Display
from bmt_trainer.data.encoding import Encoder
from bmt_trainer.data.examples import Example, Split
from bmt_trainer.data.fitting import answer_room
from bmt_trainer.methods.config import TrainConfig

C = TypeVar("C", bound=TrainConfig)


@dataclass(frozen=True)
class Prompts:
    """Location and number of tokens of each prompt that a run answers.

    trained: of the training examples, if the run answers those; unbounded: the number of the first
    ones that are answered even above max_length; heldout: of the held-out examples.
    """

    trained: Sequence[tuple[str, int]]
    heldout: Sequence[tuple[str, int]]
    unbounded: int = 0

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        split: Split,
        answered: Callable[[Example], Example] | None,
        unbounded: int,
    ) -> Prompts:
        """The prompts of a split. answered: the longest prompt that is made of an example; None:
        the run answers held-out examples only, as they are.
        """
        encoder = Encoder(tokenizer)

        def lengths(examples: Iterable[Example]) -> list[tuple[str, int]]:
            made = ((e.location, answered(e) if answered else e) for e in examples)
            return [(location, len(encoder.prompt(prompt))) for location, prompt in made]

        # Rows of text or of tokens have no prompt.
        asked = [example for example in split.heldout if example.has_prompt]
        return cls(lengths(split.train if answered else ()), lengths(asked), unbounded)

    def within_context(self, config: C, folder: Path, display: Display) -> C:
        """`config` with the lengths that the model's context allows, which is said if they change.

        folder: of the checkpoint. Raises DataError for a prompt that leaves no room for an answer.
        """
        context = models.context_length(folder)
        if context is not None and config.max_length > context:
            display.say(
                f"max_length: {context:,} tokens, not {config.max_length:,}, which is beyond the "
                "model's context"
            )
            config = dataclasses.replace(config, max_length=context)
        taken = [p for p in self.trained[self.unbounded :] if p[1] <= config.max_length]
        prompts = (*self.heldout, *self.trained[: self.unbounded], *taken)
        room, line = answer_room(prompts, config.max_new_tokens, context)
        if line is not None:
            display.say(line)
            config = dataclasses.replace(config, max_new_tokens=room)
        return config
