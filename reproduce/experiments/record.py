"""Figures of experiments: their rounding, intervals and the list that keeps all of them."""

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
    """One figure with its 95 % interval, n examples or turns, and the command that makes it.

    seeds: of the runs that it is a mean of; n is their number then.
    """

    id: str
    value: float
    interval: tuple[float, float] | None = None
    n: int
    command: str
    seeds: tuple[int, ...] | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """The figure as kept: rounded to five significant digits, finer than any interval."""
        interval = self.interval and tuple(float(f"{x:.5g}") for x in self.interval)
        made = asdict(self) | {"value": float(f"{self.value:.5g}"), "interval": interval}
        if self.seeds is None:
            del made["seeds"]
        return made


def percent(name: str, share: float, interval: tuple[float, float], n: int, command: str) -> Figure:
    """A figure in percent of a share, 0 to 1, with its interval."""
    low, high = (100 * x for x in interval)
    return Figure(id=name, value=100 * share, interval=(low, high), n=n, command=command)


def ratio(name: str, estimate: Estimate, command: str) -> Figure:
    """A figure of a measured ratio with the interval over its turns."""
    return Figure(
        id=name,
        value=estimate.value,
        interval=(estimate.low, estimate.high),
        n=estimate.turns,
        command=command,
    )


def keep(figures: Sequence[Figure], path: Path = LATEST / "paper.json") -> None:
    """Add figures to the list; a figure replaces an older one with its id."""
    known: dict[str, Any] = {}
    if path.exists():
        known = {entry["id"]: entry for entry in json.loads(path.read_text())}
    known |= {figure.id: figure.entry for figure in figures}
    write_json(path, list(known.values()))


def gain(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, tuple[float, float]]:
    """Gain in accuracy in percentage points, and Newcombe's 95 % interval of the difference.

    before, after: scores as in a mask's metadata. Both are of the same examples, so that a paired
    interval would be narrower.
    """
    p, q = before["accuracy"], after["accuracy"]
    (l1, u1), (l2, u2) = before["interval95"], after["interval95"]
    low = q - p - math.hypot(q - l2, u1 - p)
    high = q - p + math.hypot(u2 - q, p - l1)
    return 100 * (q - p), (100 * low, 100 * high)


def read_as(score: Mapping[str, Any], reading: str) -> dict[str, Any]:
    """The score with accuracy and interval of one reading, `strict` or `lenient`."""
    right, total = score["lenient" if reading == "lenient" else "exact"], score["total"]
    return {**score, "accuracy": right / total, "interval95": wilson(right, total)}
