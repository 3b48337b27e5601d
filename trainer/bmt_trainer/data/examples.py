"""Training and evaluation examples: chat messages, the right answer, and a split of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: A chat message: `role` and `content`.
Message = Mapping[str, str]


@dataclass(frozen=True)
class Example:
    """A prompt with its answer.

    prompt: chat messages; answer: the complete text that the model must produce; demonstration:
    a worked response that only an SDFT teacher sees; None: the teacher sees the answer.
    """

    prompt: tuple[Message, ...]
    answer: str
    demonstration: str | None = None

    @property
    def key(self) -> str:
        """The prompt as JSON: equal for equal prompts."""
        return json.dumps(self.prompt, sort_keys=True)


@dataclass(frozen=True)
class Split:
    """Training and held-out examples. No prompt occurs twice, in one part or in both."""

    train: list[Example]
    heldout: list[Example]


def chat(question: str) -> tuple[Message, ...]:
    """A chat of one user message."""
    return ({"role": "user", "content": question},)


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """`example` with the solved `shots` as earlier turns of its chat (few-shot prompting).

    Only the first system message is kept.
    """
    before: list[Message] = []
    for shot in shots:
        turns = shot.prompt if not before else [m for m in shot.prompt if m["role"] != "system"]
        before += [*turns, {"role": "assistant", "content": shot.answer}]
    last = [m for m in example.prompt if not before or m["role"] != "system"]
    return Example((*before, *last), example.answer)
