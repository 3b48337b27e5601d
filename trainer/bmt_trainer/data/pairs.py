"""Tokens of preference pairs: two answers to one prompt. Legend: S tokens of a row."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from bmt_trainer.data.encoding import Encoded, Encoder
from bmt_trainer.data.examples import Example
from bmt_trainer.errors import DataError


@dataclass(frozen=True)
class EncodedPair:
    """A pair's two rows, whose context is the same; what follows it is learnt in both."""

    chosen: Encoded
    rejected: Encoded

    @property
    def columns(self) -> dict[str, list[int]]:
        """The columns of TRL's trainer: token ids of the prompt and of both answers, each [S]."""
        prompt = context_of(self.chosen)
        return {
            "prompt_ids": self.chosen.input_ids[:prompt],
            "chosen_ids": self.chosen.input_ids[prompt:],
            "rejected_ids": self.rejected.input_ids[prompt:],
        }

    @property
    def length(self) -> int:
        """Tokens of the longer row."""
        return max(len(self.chosen.input_ids), len(self.rejected.input_ids))


class PairEncoder:
    """Encoding of preference pairs, each answer as supervised training encodes it."""

    # Departure: prompt and answer are tokenized separately; TRL's are one text.

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encoder = Encoder(tokenizer, "last")

    def lines(self) -> list[str]:
        """Lines on what a template changes, each with its count."""
        return self._encoder.lines()

    def checked(self, example: Example) -> Example:
        """`example` as `Encoder.checked` gives it. Raises DataError."""
        return self._encoder.checked(example)

    def encode(self, example: Example) -> EncodedPair:
        """The two rows of a pair. Raises DataError for one that the model reads as no pair."""
        if example.rejected is None:
            raise DataError(f"{example.where}rejected: missing; the row is no preference pair")
        # Without columns: they would count as a pair of which only one answer is learnt.
        one = replace(example, rejected=None, columns={}, learnt=())
        other = replace(one, answer=example.rejected.text, reply=example.rejected.reply)
        chosen = self._encoder.encode(one)[0]
        try:
            rejected = self._encoder.encode(other)[0]
        except DataError as error:
            raise DataError(f"{error} (the rejected answer)") from None
        prompt = context_of(chosen)
        if chosen.input_ids[:prompt] != rejected.input_ids[: context_of(rejected)]:
            raise DataError(
                f"{example.where}rejected: the chat template writes its prompt in another way than "
                "that of chosen, so they are no answers to one prompt"
            )
        if chosen.input_ids == rejected.input_ids:
            raise DataError(
                f"{example.where}chosen: equal to rejected as the model reads them, so neither is "
                "preferred"
            )
        return EncodedPair(chosen, rejected)


def context_of(row: Encoded) -> int:
    """The number of tokens before the answer, which is the rest of a row."""
    return row.completion_mask.index(1)
