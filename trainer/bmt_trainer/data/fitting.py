"""Rows and answers within the lengths that a run allows: truncation, and room for answers.

A row is `input_ids` and `completion_mask`, both [S]; the mask is 1 at tokens that are learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bmt_trainer.errors import DataError

#: The treatment of a row above the maximum length.
Overlong = Literal["drop", "truncate-left", "truncate-right", "error"]


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
