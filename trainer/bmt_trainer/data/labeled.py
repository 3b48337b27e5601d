"""Tokens of answers with a label, wanted or not; of a preference pair these are two.

Legend: S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from bmt_trainer.data.encoding import Encoded, Encoder
from bmt_trainer.data.examples import Example
from bmt_trainer.data.pairs import PairEncoder, context_of
from bmt_trainer.errors import DataError


@dataclass(frozen=True)
class LabeledAnswer:
    """A row with its label; what follows the context is the answer."""

    row: Encoded
    wanted: bool

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of TRL's trainer: ids of prompt and answer, each [S], and the label."""
        prompt = context_of(self.row)
        return {
            "prompt_ids": self.row.input_ids[:prompt],
            "completion_ids": self.row.input_ids[prompt:],
            "label": self.wanted,
        }

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return len(self.row.input_ids)


class LabelEncoder:
    """Encoding of labeled answers, as supervised training encodes an answer."""

    # Departure: prompt and answer are tokenized separately; TRL's are one text.

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encoder, self._pairs = Encoder(tokenizer, "last"), PairEncoder(tokenizer)

    def lines(self) -> list[str]:
        """Lines on what a template changes, each with its count."""
        return [*self._encoder.lines(), *self._pairs.lines()]

    def checked(self, example: Example) -> Example:
        """`example` as `Encoder.checked` gives it. Raises DataError."""
        return self._encoder.checked(example)

    def encode(self, example: Example) -> list[LabeledAnswer]:
        """The answer, or the two of a pair, the chosen one first. Raises DataError."""
        if example.rejected is not None:
            pair = self._pairs.encode(example)
            return [LabeledAnswer(pair.chosen, True), LabeledAnswer(pair.rejected, False)]
        if example.wanted is None:
            raise DataError(f"{example.where}label: missing; the row is no labeled answer")
        [row] = self._encoder.encode(replace(example, columns={}, learnt=()))
        return [LabeledAnswer(row, example.wanted)]


def contradictions(answers: Sequence[LabeledAnswer]) -> int:
    """The number of answers that are there as wanted and as unwanted to one prompt."""
    labels: dict[tuple[int, ...], set[bool]] = {}
    for answer in answers:
        labels.setdefault(tuple(answer.row.input_ids), set()).add(answer.wanted)
    return sum(len(found) > 1 for found in labels.values())
