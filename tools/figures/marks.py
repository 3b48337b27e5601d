"""Marks of figures on a page: `89.8 % <!-- figure: d68c9087#score.accuracy*100 -->`.

A mark stands behind the number, or the numbers, that it names a result of: with several references,
parted by `;`, the last numbers before it, in order. "At least 0.9", or at most, is a claim about
the whole interval. A unit behind the number is compared with that of the result, if it has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.figures.results import NUMBER, FigureError, Known, known
from tools.figures.units import UNITS, wrong

MARK = re.compile(r"<!-- figure: (.*?) -->", re.DOTALL)
_LOWER = re.compile(r"(?:at least|no less than|more than|≥)\s*$", re.IGNORECASE)
_UPPER = re.compile(r"(?:at most|up to|no more than|less than|fewer than|≤)\s*$", re.IGNORECASE)
_UNIT = re.compile(rf"[\s\u00a0-]*({UNITS})(?![\w-])")
# A unit stands within this distance behind its number, marks included.
_AFTER = 500
# Numbers of a mark stand within this distance before it.
_REACH = 160


@dataclass(frozen=True)
class Marked:
    """A mark, the spans in the text of the numbers that it is about, and its faults."""

    span: tuple[int, int]
    numbers: tuple[tuple[int, int], ...]
    faults: tuple[str, ...]


def marks(text: str) -> Iterator[Marked]:
    """All marks of a page, each compared with its results."""
    end = 0
    for match in MARK.finditer(text):
        begin = max(end, match.start() - _REACH)
        before = list(re.finditer(NUMBER, text[begin : match.start()]))
        end = match.end()
        try:
            yield _compared(text, begin, before, match)
        except FigureError as error:
            yield Marked(match.span(), (), (str(error),))


def _compared(
    text: str, begin: int, before: Sequence[re.Match[str]], match: re.Match[str]
) -> Marked:
    results: list[tuple[str, Known, int]] = []
    for reference in (part.strip() for part in " ".join(match[1].split()).split(";")):
        found = known(reference)
        results += [(reference, found, at) for at in range(len(found.values or [0]))]
    if len(before) < len(results):
        raise FigureError(f"{match[1]}: {len(results)} numbers, and {len(before)} before the mark")
    chosen = before[len(before) - len(results) :]
    faults = [
        f"{reference}: {fault}"
        for number, (reference, found, at) in zip(chosen, results, strict=True)
        if (
            fault := _fault(number[0], found, at, text[: begin + number.start()])
            or _fault_of_unit(found, text[begin + number.end() :])
        )
    ]
    spans = tuple((begin + n.start(), begin + n.end()) for n in chosen)
    return Marked(match.span(), spans, tuple(faults))


def _fault(printed: str, found: Known, at: int, before: str) -> str:
    if found.texts is not None:
        return "" if printed in found.texts else f"{printed} is not on that page"
    if found.values is None:
        return ""
    value = float(printed.replace(",", "").replace("−", "-"))
    decimals = len(printed.partition(".")[2].partition("e")[0])
    exponent = int(printed.partition("e")[2] or 0)
    actual = found.values[at]
    low, high = found.interval or (actual, actual)
    if _LOWER.search(before):
        return "" if low >= value else f"at least {printed}, and the interval begins at {low:g}"
    if _UPPER.search(before):
        return "" if high <= value else f"at most {printed}, and the interval ends at {high:g}"
    half = 10.0 ** (exponent - decimals) / 2
    # A half is right rounded up or down: results are kept with few digits themselves.
    right = abs(value - actual) <= half * (1 + 1e-9)
    return "" if right else f"{printed} on the page, {actual:g} in the result"


def _fault_of_unit(found: Known, after: str) -> str | None:
    """A unit that is not the result's; marks may stand before it."""
    match = _UNIT.match(MARK.sub("", after[:_AFTER]))
    return wrong(found.unit, found.scale, match[1]) if match else None
