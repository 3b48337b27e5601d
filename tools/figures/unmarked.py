"""Numbers with a unit that no mark names a result of, and that no list allows.

`allowed.yaml` has text of pages by page, each with its reason: limits that the code sets, versions,
examples, arithmetic. Text that is on no page any more is a fault too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tools.figures import tables
from tools.figures.marks import Marked
from tools.figures.units import UNITS

ALLOWED = Path(__file__).with_name("allowed.yaml")
_SPACE = r"(?:[\s\u00a0\u2009\u202f]|&nbsp;)"
_PLAIN = r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
_WORD = (
    "two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty "
    "sixty seventy eighty ninety hundred thousand"
).replace(" ", "|")
_JOINT = rf"(?:(?:,| to| and| or|, and|{_SPACE}*±)?{_SPACE}+|{_SPACE}*[-–±/]{_SPACE}*)[-−]?"
# The end of bold or of a tag between a number and its unit.
_END = r"(?:\*\*|</\w+>)?"
#: One number or several, as in `0.05 to 0.09 %`, or one in words, then a unit; or a ratio,
#: `0.96 of`.
FIGURE = re.compile(
    rf"(?<!rank )(?<![\w.,-])(?:"
    rf"[-−]?{_PLAIN}(?:{_JOINT}{_PLAIN})*"
    rf"(?:{_END}(?:{_SPACE}|-)?(?:{UNITS})(?![\w-])|x(?![\w-])"
    rf"|(?:(?<=\d\.\d)|(?<=\.\d\d)|(?<=\.\d\d\d)){_END}\s+of\b)"
    rf"|(?:{_WORD})(?:-(?:{_WORD}))?(?:{_SPACE}|-)(?:{UNITS})(?![\w-]))",
    re.IGNORECASE,
)
_ONE = re.compile(rf"{_PLAIN}|{_WORD}", re.IGNORECASE)
#: Blocks that `make docs` writes.
GENERATED = ("benchmarks", "operate figures")
_HIDDEN = (
    re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE),
    *(
        re.compile(rf"<!-- {name}: `make docs` -->.*?<!-- end of {name} -->", re.DOTALL)
        for name in GENERATED
    ),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"`[^`\n]*`"),
    re.compile(r"\]\([^)]*\)"),
    re.compile(r"^\[[^\]]+\]: .*$", re.MULTILINE),
)


@dataclass(frozen=True)
class Unmarked:
    """A number without a result: its line on the page, and its text."""

    line: int
    text: str


def visible(text: str) -> str:
    """The text with code, links, comments and generated tables blanked, positions as they were."""
    for pattern in _HIDDEN:
        text = pattern.sub(_blank, text)
    return text


def _blank(match: re.Match[str]) -> str:
    # A figure in the type of code is a figure.
    if FIGURE.fullmatch(match[0].strip("`")):
        return match[0]
    return re.sub(r"[^\n]", "\0", match[0])


def unmarked(text: str, marked: list[Marked], allowed: Mapping[str, str]) -> Iterator[Unmarked]:
    """Numbers with a unit that are neither marked nor within an allowed text."""
    covered = [span for mark in marked for span in mark.numbers]
    for words in allowed:
        covered += [m.span() for m in re.finditer(_loosely(words), text)]
    shown = visible(text)
    found = [
        (match.span(), [n.span() for n in _ONE.finditer(shown, *match.span())])
        for match in FIGURE.finditer(shown)
    ]
    found += [(span, [span]) for span in tables.numbers(shown)]
    for (begin, end), numbers in sorted(found):
        if all(any(a <= at and to <= b for a, b in covered) for at, to in numbers):
            continue
        yield Unmarked(text.count("\n", 0, begin) + 1, " ".join(shown[begin:end].split()))


def stale(text: str, allowed: Mapping[str, str]) -> Iterator[str]:
    """Allowed texts that the page does not have, or that have no number."""
    for words in allowed:
        if not re.search(_loosely(words), text):
            yield f"allowed, and not on the page: {words}"
        elif not _ONE.search(words):
            yield f"allowed, and without a number: {words}"


def lists() -> dict[str, dict[str, str]]:
    """Allowed texts by page, with their reasons. Raises ValueError for one without a reason."""
    pages: dict[str, dict[str, list[str]]] = yaml.safe_load(ALLOWED.read_text())
    found: dict[str, dict[str, str]] = {}
    for page, reasons in pages.items():
        for reason, texts in reasons.items():
            if not reason.strip():
                raise ValueError(f"{ALLOWED.name}: {page} allows {texts} without a reason")
            found.setdefault(page, {}).update(dict.fromkeys(map(str, texts), reason))
    return found


def _loosely(words: str) -> str:
    """The words with any space between them."""
    return r"\s+".join(re.escape(word) for word in words.split())
