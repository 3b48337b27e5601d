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

from tools.figures.marks import Marked
from tools.figures.results import NUMBER

ALLOWED = Path(__file__).with_name("allowed.yaml")
_UNITS = (
    r"%|ms|us|µs|s|h|seconds?|minutes?|hours?|[kMGT]B|[KMGT]iB|bytes?|tokens/s|tokens a second"
    r"|MB/s|points|times|nats|×"
)
#: One number or several, as in `0.05 to 0.09 %`, then a unit; or a ratio, `0.96 of`.
FIGURE = re.compile(
    rf"(?<!rank )(?:{NUMBER}(?:,| to| and| or|, and)?\s+)*(?:{NUMBER})"
    rf"(?:[ \u00a0-]?(?:{_UNITS})(?![\w-])"
    rf"|(?<=\d\.\d)\s+of\b|(?<=\.\d\d)\s+of\b|(?<=\.\d\d\d)\s+of\b)"
)
_HIDDEN = (
    re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE),
    re.compile(r"<!-- (\w[\w ]*): `make docs` -->.*?<!-- end of \1 -->", re.DOTALL),
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
        text = pattern.sub(lambda m: re.sub(r"[^\n]", "\0", m[0]), text)
    return text


def unmarked(text: str, marked: list[Marked], allowed: Mapping[str, str]) -> Iterator[Unmarked]:
    """Numbers with a unit that are neither marked nor within an allowed text."""
    covered = [span for mark in marked for span in mark.numbers]
    for words in allowed:
        covered += [m.span() for m in re.finditer(_loosely(words), text)]
    for match in FIGURE.finditer(visible(text)):
        inner = [
            (match.start() + n.start(), match.start() + n.end())
            for n in re.finditer(NUMBER, match[0])
        ]
        if all(any(a <= begin and end <= b for a, b in covered) for begin, end in inner):
            continue
        yield Unmarked(text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()))


def stale(text: str, allowed: Mapping[str, str]) -> Iterator[str]:
    """Allowed texts that the page does not have, or that have no number."""
    for words in allowed:
        if not re.search(_loosely(words), text):
            yield f"allowed, and not on the page: {words}"
        elif not re.search(r"\d", words):
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
