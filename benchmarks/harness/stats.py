"""Medians, ratios over interleaved pairs, and how sure they are.

A sample is never compared with one of another time: machines drift by more than the differences
looked for. So each ratio is of two runs that followed each other, and pairs of processes are the
unit that is resampled, since what differs between two processes (memory layout, thread placement)
does not average out within one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

RESAMPLES = 4000
SEED = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with the 95 % interval of a bootstrap over `pairs` pairs of processes."""

    value: float
    low: float
    high: float
    pairs: int
    turns: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def estimate(pairs: Sequence[Sequence[float]]) -> Estimate:
    """Semantics: the median over pairs of each pair's median over its turns.

    pairs[i]: the ratios of process pair i, one a turn. The interval resamples pairs, and turns
    within a pair, with replacement: 2.5 to 97.5 % of the medians so found. Raises ValueError
    where there is nothing to take a median of.
    """
    filled = [np.asarray(turns, dtype=float) for turns in pairs if len(turns)]
    if not filled:
        raise ValueError("no turns were measured; a ratio needs at least one pair of runs")
    value = statistics.median(float(np.median(turns)) for turns in filled)
    rng = np.random.default_rng(SEED)
    # [pairs, RESAMPLES, pairs]: each pair's median, drawn again for each place that it may take.
    shape = (RESAMPLES, len(filled))
    medians = [np.median(rng.choice(turns, (*shape, len(turns))), axis=2) for turns in filled]
    chosen = rng.integers(len(filled), size=shape)
    drawn = np.take_along_axis(np.stack(medians), chosen[None], axis=0)[0]
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    turns = sum(len(turns) for turns in filled)
    return Estimate(value, float(low), float(high), len(filled), turns)


def quantile_ratio(some: Sequence[float], others: Sequence[float], q: float) -> Estimate:
    """The q-quantile of `some` over that of `others`; the interval resamples single samples."""
    a, b = np.asarray(some, dtype=float), np.asarray(others, dtype=float)
    rng = np.random.default_rng(SEED)
    upper, lower = (np.quantile(rng.choice(x, (RESAMPLES, x.size)), q, axis=1) for x in (a, b))
    low, high = np.quantile(upper / lower, (0.025, 0.975))
    value = np.quantile(a, q) / np.quantile(b, q)
    return Estimate(float(value), float(low), float(high), 1, a.size)


def median(samples: Sequence[float]) -> float:
    """The median. Raises statistics.StatisticsError where there are no samples."""
    return float(statistics.median(samples))


def zipf(count: int, draws: int, exponent: float, seed: int) -> list[int]:
    """`draws` ranks of 0 to count - 1, rank k with weight 1 / (k + 1)^exponent; 0 is uniform."""
    weights = 1.0 / np.arange(1, count + 1, dtype=float) ** exponent
    rng = np.random.default_rng(seed)
    return [int(k) for k in rng.choice(count, size=draws, p=weights / weights.sum())]


def rotated(of: Sequence[T], by: int) -> list[T]:
    """The same in another order, forward and backward in turn: each comes first, each last."""
    start = (by // 2) % len(of)
    turned = [*of[start:], *of[:start]]
    return turned[::-1] if by % 2 else turned
