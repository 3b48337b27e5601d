"""Text of others in Markdown: it stays text, whatever characters it has.

A mask's metadata is written by whoever trained it. Backslashes before punctuation are read in two
ways by Markdown's dialects, within tables above all; entities are text in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST = 200
# Punctuation that means nothing in the middle of a line.
_PLAIN = frozenset(" ,;-/+=%()")


def text(value: object, longest: int = _LONGEST) -> str:
    """`value` as one line of Markdown, cut after `longest` characters."""
    words = str(value)
    if len(words) > longest:
        words = words[:longest] + "…"
    return "".join(_entity(words, at) for at in range(len(words)))


def code(value: object, longest: int = _LONGEST) -> str:
    """`value` in the type of code."""
    return f"<code>{text(value, longest)}</code>" if str(value).strip() else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of cells that are Markdown already."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _entity(words: str, at: int) -> str:
    letter = words[at]
    if not letter.isprintable():
        # A control or line break would end the line, and some turn its direction around.
        return " " if letter in "\n\t\r" else f"\\u{ord(letter):04x}"
    if letter.isalnum() or letter in _PLAIN or ord(letter) > 127:
        return letter
    if letter in "._" and _within_word(words, at):
        return letter
    return f"&#{ord(letter)};"


def _within_word(words: str, at: int) -> bool:
    """True between two letters or digits, and not after `www`, which begins a link."""
    around = words[max(0, at - 1) : at], words[at + 1 : at + 2]
    return all(side.isalnum() for side in around) and words[max(0, at - 3) : at].lower() != "www"
