"""Numbers of tables whose unit stands in the head of their column, or of their row."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.figures.results import NUMBER
from tools.figures.units import UNITS

_RULE = re.compile(r"\|(?:\s*:?-+:?\s*\|)+\s*")
# After a comma, in brackets or by itself; a unit behind a number is of that number.
_HEAD = re.compile(rf"(?:^|[,(])\s*(?:{UNITS})(?![\w-])")


def numbers(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the numbers in cells whose head has a unit, as `accuracy, %` has."""
    at, before = 0, ""
    heads: list[bool] = []
    for line in text.splitlines(keepends=True):
        if not line.startswith("|"):
            heads = []
        elif _RULE.fullmatch(line):
            heads = [bool(_HEAD.search(cell.strip())) for cell in before[1:].split("|")]
        elif heads:
            begin, row = at + 1, False
            for column, cell in enumerate(line[1:].split("|")):
                if row or (column < len(heads) and heads[column]):
                    yield from (
                        (begin + n.start(), begin + n.end()) for n in re.finditer(NUMBER, cell)
                    )
                row = row or (column == 0 and bool(_HEAD.search(cell.strip())))
                begin += len(cell) + 1
        at, before = at + len(line), line
