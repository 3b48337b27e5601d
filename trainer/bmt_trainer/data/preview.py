"""A row as text, marked token by token: read as context, or learnt.

On a terminal with colors, learnt tokens have a background, in two tones that alternate. Elsewhere
they stand between ⟦ and ⟧, separated by │. White space and invisible characters are visible, and
long stretches are shortened in the middle.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.text import Text
from transformers import PreTrainedTokenizerBase

# Characters of a stretch of tokens of one kind that are shown at its beginning and at its end.
_HEAD, _TAIL = 240, 160
# The same, of stretches: a chat of many turns shows its first ones and its last ones.
_FIRST, _LAST = 5, 6

_OPEN, _CLOSE, _BETWEEN = "⟦", "⟧", "│"
_SPACE, _NEWLINE, _TAB = "·", "↵", "⇥"
_CONTEXT, _SPECIAL, _GAP = "dim", "cyan", "italic yellow"
_LEARNT = ("white on dark_green", "white on green4")
# Categories of characters that do not show: control, format, surrogate, private, unassigned, and
# line, paragraph and unusual space separators.
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}


@dataclass(frozen=True)
class Piece:
    """The text of one token, or of several that make up one character.

    learnt: the loss covers it; special: a token that the tokenizer adds to its vocabulary, such as
    the end of a turn; count: of its tokens.
    """

    text: str
    learnt: bool
    special: bool = False
    count: int = 1


def pieces(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], learnt: Sequence[int]
) -> list[Piece]:
    """The tokens `input_ids`, [S], as text; learnt: 1 for those that the loss covers, [S]."""
    special = tokenizer.added_tokens_decoder.keys()

    def decode(ids: Sequence[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    made: list[Piece] = []
    before, begin = 0, 0
    for at, (token, mark) in enumerate(zip(input_ids, learnt, strict=True)):
        # Decoded after the piece before: some tokenizers drop a text's first space. Tokens that
        # share a character are one piece, unless the loss treats them differently.
        text = decode(input_ids[before : at + 1])[len(decode(input_ids[before:begin])) :]
        last = at + 1 == len(input_ids) or bool(learnt[at + 1]) != bool(mark)
        if text.endswith("\ufffd") and not last and token not in special:
            continue
        made.append(Piece(text, bool(mark), token in special, at + 1 - begin))
        before, begin = begin, at + 1
    return made


def show(row: Sequence[Piece], *, color: bool) -> Text:
    """A row's pieces as text. color: mark learnt tokens by color, else by signs."""
    text = Text(no_wrap=not color, end="")
    stretches = [list(group) for _, group in groupby(row, lambda piece: piece.learnt)]
    shown: list[list[Piece] | None] = [*stretches]
    if len(stretches) > _FIRST + _LAST + 1:
        shown = [*stretches[:_FIRST], None, *stretches[-_LAST:]]
    tone, after_special = 0, False
    for stretch in shown:
        if stretch is None:
            left = [p for part in stretches[_FIRST:-_LAST] for p in part]
            text.append("\n" + _left_out(left) + "\n", _GAP)
            continue
        marked = stretch[0].learnt and not color
        if marked:
            text.append(_OPEN)
        for number, piece in enumerate(_shortened(stretch)):
            if piece.count < 0:  # the gap of a shortened stretch
                text.append(piece.text, _GAP)
                after_special = False
                continue
            # A turn begins on a line of its own.
            if piece.special and after_special and not piece.learnt:
                text.append("\n")
            if marked and number:
                text.append(_BETWEEN)
            if piece.learnt:
                tone = 1 - tone
                style = _LEARNT[tone] + (" bold" if piece.special else "")
            else:
                style = _SPECIAL if piece.special else _CONTEXT
            text.append(visible(piece.text, spaces=piece.learnt), style)
            if piece.special:
                after_special = True
            elif piece.text.strip():
                after_special = False
        if marked:
            text.append(_CLOSE)
    return text


def _shortened(stretch: Sequence[Piece]) -> Iterable[Piece]:
    """The pieces of a stretch, with its middle replaced by one piece of count -1 if it is long."""
    if sum(len(p.text) for p in stretch) <= _HEAD + _TAIL + 40:
        return stretch
    head = _within(stretch, _HEAD)
    tail = _within(stretch[::-1], _TAIL)[::-1]
    left = stretch[len(head) : len(stretch) - len(tail)]
    if not left:
        return stretch
    return [*head, Piece(f" {_left_out(left)} ", stretch[0].learnt, count=-1), *tail]


def _within(row: Sequence[Piece], characters: int) -> list[Piece]:
    taken, used = [], 0
    for piece in row:
        used += len(piece.text)
        if used > characters:
            break
        taken.append(piece)
    return taken


def _left_out(row: Sequence[Piece]) -> str:
    count = _count(row)
    learnt = _count(piece for piece in row if piece.learnt)
    kind = "" if learnt in (0, count) else f", {learnt:,} of them learnt"
    return f"… {count:,} tokens{kind} …"


def visible(text: str, *, spaces: bool) -> str:
    """Text with signs for line ends, tabs and, if `spaces`, blanks; escapes for what is invisible.

    Signs that this module uses itself are escaped too, so that no text looks like a mark.
    """
    return "".join(_sign(character, spaces) for character in text)


def _sign(character: str, spaces: bool) -> str:
    if character == " ":
        return _SPACE if spaces else " "
    if character == "\n":
        return _NEWLINE
    if character == "\t":
        return _TAB
    own = character in (_OPEN, _CLOSE, _BETWEEN, _SPACE, _NEWLINE, _TAB)
    if own or unicodedata.category(character) in _INVISIBLE:
        return (
            f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"
        )
    return character


def stretches(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Text, kind and number of tokens of each stretch of a row, as JSON."""
    row_pieces = pieces(tokenizer, row["input_ids"], row["completion_mask"])
    return [
        {"text": "".join(p.text for p in group), "learnt": learnt, "tokens": _count(group)}
        for learnt, group in ((k, list(g)) for k, g in groupby(row_pieces, lambda p: p.learnt))
    ]


def _count(row: Iterable[Piece]) -> int:
    return sum(piece.count for piece in row)


def of_row(
    tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], title: str, *, color: bool
) -> Text:
    """A heading with the numbers of tokens, and the row below it.

    row: `input_ids` and `completion_mask`, [S]; a prompt has no mask, and nothing of it is learnt.
    """
    ids = list(row["input_ids"])
    mask = list(row.get("completion_mask") or [0] * len(ids))
    learnt = sum(map(bool, mask))
    counts = f"{len(ids):,} tokens"
    if learnt:
        marks = "with a background" if color else f"between {_OPEN} and {_CLOSE}"
        counts += f", {learnt:,} learnt ({marks})"
    row_text = show(pieces(tokenizer, ids, mask), color=color)
    return Text.assemble((f"{title}: {counts}\n", "bold"), row_text, no_wrap=not color)
