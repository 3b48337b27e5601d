"""Tokenization of examples, and the tokens that end an answer. Legend: S tokens of a row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from transformers import PreTrainedTokenizerBase

from bmt_trainer.data.chats.chat_template import ChatTemplate, Turn
from bmt_trainer.data.chats.written import has_written_chat
from bmt_trainer.data.examples import Example, Message
from bmt_trainer.errors import DataError, ModelError

#: The assistant's turns that supervised training learns: all that the row lets, or the last one.
Learn = Literal["all", "last"]


@dataclass(frozen=True)
class Encoded:
    """A training row.

    input_ids, completion_mask: [S], 1 for a token that is learnt; pieces: the row's text in the
    parts that were tokenized, each with True if it is learnt.
    """

    input_ids: list[int]
    completion_mask: list[int]
    pieces: tuple[tuple[str, bool], ...]

    @property
    def columns(self) -> dict[str, list[int]]:
        """The columns of TRL's trainer."""
        return {"input_ids": self.input_ids, "completion_mask": self.completion_mask}


class Encoder:
    """Encoding of examples as a chat server encodes them. Errors name the row.

    notes: counts of what a template changes besides the learnt text, by a line for the display.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, learn: Learn = "all") -> None:
        self._tokenizer, self._learn = tokenizer, learn
        self.template = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        self.notes: Counter[str] = self.template.notes if self.template else Counter()

    def lines(self) -> list[str]:
        """The notes as lines, each with its count."""
        return [f"{line} ({count:,} times)" for line, count in self.notes.items()]

    def prompt(self, example: Example) -> list[int]:
        """Token ids of the prompt, with the header of an answer. Raises DataError."""
        return self._context(self.prompt_text(example), example)

    def calibration(self, example: Example) -> list[int]:
        """Token ids of the prompt, or of the whole row if it has none. Raises DataError."""
        return self.prompt(example) if example.has_prompt else self.encode(example)[0].input_ids

    def prompt_text(self, example: Example) -> str:
        """The prompt as the model reads it. Raises DataError.

        By the chat template; for a model without one, a text as it is, and a chat of one user
        message as a line.
        """
        if isinstance(example.prompt, str):
            return example.prompt
        if self.template is None:
            return plain(example)
        return self.template.render(example.prompt, example, generation=True)

    def checked(self, example: Example) -> Example:
        """`example` with the answer that graders compare with, as the model would write it.

        Raises DataError if its prompt cannot be given to the model as it is.
        """
        if example.tokens is not None:
            self._check_tokens(example)
            return example
        if self.template is not None and not isinstance(example.prompt, str):
            self.template.check_prompt(example)
        empty = example.prompt == "" or (self.template is None and not plain(example))
        if example.has_prompt and empty and not self.prompt(example):
            raise DataError(f"{example.where}prompt: has no tokens, so nothing can be generated")
        if example.reply is None:
            return example
        return replace(example, answer=self.reference(example))

    def reference(self, example: Example) -> str:
        """The text of the answer as the model writes it, without its thoughts. Raises DataError."""
        if example.reply is None or self.template is None:
            return example.answer
        reply = {k: v for k, v in example.reply.items() if k != "reasoning_content"}
        if "tool_calls" not in reply:
            return example.answer
        messages = (*example.messages, reply)
        turn = self.template.turn(example, messages, len(messages) - 1)
        ids = self._tokenizer(turn.text, add_special_tokens=False)["input_ids"]
        decoded = str(self._tokenizer.decode(ids, skip_special_tokens=True))
        return _NO_THOUGHTS.sub("", decoded).strip()

    def encode(self, example: Example) -> list[Encoded]:
        """The training rows of an example, usually one. Raises DataError.

        A context and a learnt turn are tokenized separately, as in generation, so that no token
        spans both. The first row holds all learnt turns, unless the template writes an earlier
        turn in another way once others follow: then each learnt turn has a row of its own.
        """
        if example.tokens is not None:
            self._check_tokens(example)
            mask = [int(learnt) for learnt in example.tokens.learnt]
            ids = list(example.tokens.ids)
            runs = _runs(example.tokens.learnt)
            texts = [(str(self._tokenizer.decode(ids[a:b])), on) for a, b, on in runs]
            return [Encoded(ids, mask, tuple(texts))]
        if example.reply is None and not example.answer.strip():
            raise DataError(
                f"{example.where}the row has no completion, so there is nothing to learn; add one, "
                "or train by rewards (grpo)"
            )
        if example.rejected or {"chosen", "rejected"} <= example.columns.keys():
            self.notes[_PREFERENCE] += 1
        if has_written_chat(example):
            self.notes[_WRITTEN] += 1
        if self.template is None or isinstance(example.prompt, str):
            pieces = [(self.prompt_text(example), False), (example.answer, True)]
            end = self._tokenizer.eos_token
            return [self._row(example, pieces, eos=not (end and example.answer.endswith(end)))]
        return self._turns(example, self.template)

    def _turns(self, example: Example, template: ChatTemplate) -> list[Encoded]:
        reply: Message = example.reply or {"role": "assistant", "content": example.answer}
        messages = (*example.messages, reply)
        earlier = example.learnt if self._learn == "all" else ()
        turns: list[Turn] = []
        for at in (*earlier, len(messages) - 1):
            if not messages[at]["content"].strip() and not messages[at].get("tool_calls"):
                raise DataError(
                    f"{example.where}turn {at + 1} (assistant), content: empty, so the model would "
                    "learn to say nothing; give it text or tool_calls, or weight 0"
                )
            if not at:
                raise DataError(
                    f"{example.where}turn 1 (assistant): answers no turn, so it cannot be learnt; "
                    "give it weight 0, or set learn: last"
                )
            turns.append(template.turn(example, messages, at))
        whole = turns[-1].before + turns[-1].text
        one = all(whole.startswith(t.before + t.text) and t.ends for t in turns[:-1])
        if one:
            return [self._row(example, _pieces(turns), eos=not turns[-1].ends)]
        self.notes[_SEVERAL] += 1
        return [self._row(example, _pieces([t]), eos=not t.ends) for t in turns]

    def _row(
        self, example: Example, pieces: Sequence[tuple[str, bool]], *, eos: bool = True
    ) -> Encoded:
        """The row of texts in order. eos: the tokenizer's end of text follows."""
        ids: list[int] = []
        mask: list[int] = []
        end = ""
        for at, (text, learnt) in enumerate(pieces):
            if not at:
                made = self._context(text, example) if not learnt else self._ids(text, example)
            else:
                made = self._ids(text, example, after=end)
            end = self.template.end or "" if self.template and learnt else ""
            ids += made
            mask += [int(learnt)] * len(made)
        if eos:
            ids.append(self._eos(example))
            mask.append(1)
            pieces = [*pieces, (str(self._tokenizer.eos_token), True)]
        return Encoded(ids, mask, tuple(pieces))

    def _context(self, text: str, example: Example) -> list[int]:
        """Token ids of a prompt. A template writes the special tokens itself."""
        if self.template is not None and not isinstance(example.prompt, str):
            return self._ids(text, example)
        ids = self._encoded(text, example, special=True)
        # Some tokenizers end every text, also one that goes on.
        if (
            ids
            and ids[-1] == self._tokenizer.eos_token_id
            and self._ids(text, example)[-1:] != ids[-1:]
        ):
            ids.pop()
        return ids

    def _encoded(self, text: str, example: Example, *, special: bool = False) -> list[int]:
        try:
            return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])
        except (TypeError, UnicodeError):
            raise DataError(
                f"{example.where}half of a surrogate pair, such as \\ud83d, is no text that can be "
                "encoded; repair or remove it"
            ) from None

    def _ids(self, text: str, example: Example, after: str = "") -> list[int]:
        """Token ids of a text that follows `after`, a token.

        Tokenizers that put a space before a text would put it inside of a chat.
        """
        if not text:
            return []
        made = self._encoded(after + text, example)
        before = self._encoded(after, example) if after else []
        if made[: len(before)] == before:
            return made[len(before) :]
        return self._encoded(text, example)

    def _eos(self, example: Example) -> int:
        if self._tokenizer.eos_token_id is None:
            raise DataError(
                f"{example.where}nothing ends an answer: the tokenizer has no eos_token, and no "
                "chat template ends the turn; set eos_token in the model's tokenizer_config.json"
            )
        return int(self._tokenizer.eos_token_id)

    def _check_tokens(self, example: Example) -> None:
        size = len(self._tokenizer)
        for at, token in enumerate(example.tokens.ids if example.tokens else ()):
            if not 0 <= token < size:
                raise DataError(
                    f"{example.where}input_ids[{at}]: {token} is outside of the vocabulary of "
                    f"{size} tokens; the row was tokenized for another model"
                )


_PREFERENCE = "preference pairs: the chosen answer is learnt, the rejected one is not used"
_WRITTEN = (
    "a prompt or an answer is a chat written as JSON text, and is learnt as that text, not as turns"
)
_SEVERAL = (
    "a chat is one training row per learnt turn, because its template writes a turn in another way "
    "once others follow"
)
# The empty thoughts that some templates write into an answer without thoughts.
_NO_THOUGHTS = re.compile(r"^\s*<think>\s*</think>\s*")


def _pieces(turns: Sequence[Turn]) -> list[tuple[str, bool]]:
    """The texts of turns in one chat, each after the text between it and the turn before it."""
    pieces: list[tuple[str, bool]] = []
    at = 0
    for turn in turns:
        pieces += [(turn.before[at:], False), (turn.text, True)]
        at = len(turn.before) + len(turn.text)
    return pieces


def _runs(values: Sequence[bool]) -> Iterator[tuple[int, int, bool]]:
    """Begin, end and value of each run of equal values."""
    at = 0
    for value, run in groupby(values):
        size = len(list(run))
        yield at, at + size, value
        at += size


def render(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Token ids of an example's prompt, as a chat server builds them. Raises DataError."""
    return Encoder(tokenizer).prompt(example)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token by which the chat template ends the assistant's turns; None without one."""
    end = ChatTemplate(tokenizer).end if tokenizer.chat_template else None
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    return int(ids[-1]) if ids and ids[-1] in tokenizer.added_tokens_decoder else None


def end_of_turn_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that ends an answer, as text: the template's end of a turn, else the eos."""
    end = end_of_turn(tokenizer)
    return str(tokenizer.eos_token if end is None else tokenizer.convert_ids_to_tokens(end))


def complete_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without eos the token that ends a turn, and one without padding a token.

    Padding is never attended to, so that any token can be it. Raises ModelError.
    """
    if tokenizer.eos_token_id is None:
        if (end := end_of_turn(tokenizer)) is None:
            raise ModelError(
                "the tokenizer has no eos_token, and no chat template ends a turn by a token, so "
                "nothing would end an answer; set eos_token in the model's tokenizer_config.json, "
                "or give a --chat-template"
            )
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def plain(example: Example) -> str:
    """A prompt for a model without a chat template: its text, or its messages, one per line.

    Raises DataError for a row that is a chat: lines would not say who speaks.
    """
    if isinstance(example.prompt, str):
        return example.prompt
    if example.plain == "exact" and len(example.prompt) == 1:
        return str(example.prompt[0]["content"])
    if example.plain != "lines":
        raise DataError(
            f"{example.where}the model has no chat template, and the row is a chat of "
            f"{', '.join(m['role'] for m in example.prompt)}; give one with --chat-template FILE"
        )
    return "".join(f"{m['content']}\n" for m in example.prompt)
