"""Rows and answers within the lengths that a run allows: truncation, and room for answers.

A row is `input_ids` and `completion_mask`, both [S]; the mask is 1 at tokens that are learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bmt_trainer.data.examples import Example
from bmt_trainer.errors import DataError

#: The treatment of a row above the maximum length.
Overlong = Literal["drop", "truncate-left", "truncate-right", "error"]


class LengthBound:
    """Leaves out what is longer than `most` tokens while training examples are taken, and counts.

    So the rest of the data replaces what is left out. length: tokens of an example, which may raise
    DataError; what: the noun of the line.
    """

    def __init__(self, most: int, length: Callable[[Example], int], what: str = "prompts") -> None:
        self._most, self._length, self._what = most, length, what
        self.asked = self.left_out = 0
        self._first = ""
        self._lengths: dict[int, int] = {}

    def of(self, prepared: Callable[[Example], Example]) -> LengthBound:
        """A bound on what `prepared` makes of an example."""
        return LengthBound(self._most, lambda e: self._length(prepared(e)), self._what)

    def fits(self, example: Example) -> bool:
        """True for an example of at most `most` tokens."""
        self.asked += 1
        length = self._length(example)
        if length <= self._most:
            self._lengths[id(example)] = length
            return True
        self.left_out += 1
        self._first = self._first or f"{example.where}{length:,} tokens"
        return False

    def length_of(self, example: Example) -> int:
        """Tokens of an example that was taken, and is still there."""
        return self._lengths[id(example)]

    def lines(self) -> list[str]:
        """A line on what was left out; none if nothing was."""
        if not self.left_out:
            return []
        return [
            f"left out {self.left_out:,} of {self.asked:,} {self._what} of more than "
            f"{self._most:,} tokens (max_length); the first is {self._first}"
        ]


@dataclass(frozen=True)
class Fitted:
    """Rows of at most the maximum length; kept: the index of each among the rows that were given.

    overlong: the number of rows that were longer; truncated: of those that were cut and kept;
    dropped: of those left out, by reason.
    """

    rows: list[dict[str, list[int]]]
    kept: list[int]
    overlong: int = 0
    truncated: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def notes(self, max_length: int) -> list[str]:
        """Lines on rows that were cut or left out; none if each is kept as it is."""
        lines = []
        if self.truncated:
            lines.append(
                f"truncated {self.truncated:,} of {len(self.rows):,} examples to max_length, "
                f"{max_length:,} tokens"
            )
        lines += [
            f"left out {count:,} examples: {reason}" for reason, count in self.dropped.items()
        ]
        return lines


def fit(
    rows: Sequence[Mapping[str, Any]],
    max_length: int,
    overlong: Overlong = "drop",
    locations: Sequence[str] = (),
) -> Fitted:
    """Keep, cut or leave out each row so that none has more than `max_length` tokens.

    A row of which nothing is left to learn is left out. The first token of a sequence is never
    learnt, because nothing predicts it. locations: of the rows, for error messages. Raises
    DataError for `overlong: error`.
    """
    kept: list[int] = []
    result: list[dict[str, list[int]]] = []
    longer = truncated = 0
    dropped: dict[str, int] = {}
    for at, row in enumerate(rows):
        ids, mask = list(row["input_ids"]), list(row["completion_mask"])
        cut = len(ids) > max_length
        if cut:
            longer += 1
            if overlong == "error":
                where = locations[at] if at < len(locations) and locations[at] else f"row {at + 1}"
                raise DataError(
                    f"{where}: {len(ids):,} tokens exceed max_length {max_length:,}; raise it, or "
                    "set overlong to drop, truncate-left or truncate-right"
                )
            if overlong == "drop":
                _count(dropped, f"longer than max_length, {max_length:,} tokens")
                continue
            chosen = slice(-max_length, None) if overlong == "truncate-left" else slice(max_length)
            ids, mask = ids[chosen], mask[chosen]
        if not any(mask[1:]):
            _count(dropped, "nothing to learn is left by truncation" if cut else "nothing to learn")
            continue
        truncated += cut
        kept.append(at)
        result.append({"input_ids": ids, "completion_mask": mask})
    return Fitted(result, kept, longer, truncated, dropped)


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1


def answer_room(
    prompts: Iterable[tuple[str, int]], max_new_tokens: int, context: int | None
) -> tuple[int, str | None]:
    """The most new tokens of an answer, and a line if that is less than `max_new_tokens`.

    prompts: location and length of each; context: the most tokens of a sequence, None if unknown.
    All answers get the same limit, that of the longest prompt, so that scores are comparable.
    Raises DataError for a prompt that leaves no room.
    """
    where, longest = max(prompts, key=lambda prompt: prompt[1], default=("", 0))
    if context is None or longest + max_new_tokens <= context:
        return max_new_tokens, None
    room = context - longest
    named = f" ({where})" if where else ""
    if room < 1:
        raise DataError(
            f"a prompt has {longest:,} tokens{named}, and the model's context is {context:,}: no "
            "room for an answer; shorten or leave out such prompts"
        )
    return room, (
        f"max_new_tokens: answers end after {room:,} tokens, not {max_new_tokens:,}: the model's "
        f"context is {context:,} tokens and the longest prompt takes {longest:,}{named}"
    )
