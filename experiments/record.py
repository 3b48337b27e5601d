"""Keeps what experiments found: one list for all, and a plot for each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bmt_trainer.evaluation.intervals import wilson

from benchmarks.harness.stats import Estimate
from benchmarks.report.results import LATEST, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure; interval: 95 %, n: how many examples or turns it is of. Rounded where kept."""

    id: str
    value: float
    interval: tuple[float, float] | None = None
    n: int
    command: str

    @property
    def entry(self) -> dict[str, Any]:
        """As it is kept: five significant digits, more than any interval leaves open."""
        interval = self.interval and tuple(float(f"{x:.5g}") for x in self.interval)
        return asdict(self) | {"value": float(f"{self.value:.5g}"), "interval": interval}


def percent(name: str, share: float, interval: tuple[float, float], n: int, command: str) -> Figure:
    """A share of 0 to 1 with its interval, in percent."""
    low, high = (100 * x for x in interval)
    return Figure(id=name, value=100 * share, interval=(low, high), n=n, command=command)


def ratio(name: str, found: Estimate, command: str) -> Figure:
    """A measured ratio with the interval of its turns."""
    return Figure(
        id=name,
        value=found.value,
        interval=(found.low, found.high),
        n=found.turns,
        command=command,
    )


def keep(figures: Sequence[Figure], path: Path = LATEST / "paper.json") -> None:
    """Put figures into the list of all, in place of older ones of the same ids."""
    known: dict[str, Any] = {}
    if path.exists():
        known = {entry["id"]: entry for entry in json.loads(path.read_text())}
    known |= {figure.id: figure.entry for figure in figures}
    write_json(path, list(known.values()))


def gain(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, tuple[float, float]]:
    """Points by which accuracy rose, and Newcombe's 95 % interval of the difference.

    before, after: scores as in a mask's metadata. The two are of the same examples, so an interval
    that knew the pairs would be narrower.
    """
    p, q = before["accuracy"], after["accuracy"]
    (l1, u1), (l2, u2) = before["interval95"], after["interval95"]
    low = q - p - math.hypot(q - l2, u1 - p)
    high = q - p + math.hypot(u2 - q, p - l1)
    return 100 * (q - p), (100 * low, 100 * high)


def read_as(score: Mapping[str, Any], reading: str) -> dict[str, Any]:
    """A score with the accuracy and interval of one reading, `strict` or `lenient`."""
    right, total = score["lenient" if reading == "lenient" else "exact"], score["total"]
    return {**score, "accuracy": right / total, "interval95": wilson(right, total)}
