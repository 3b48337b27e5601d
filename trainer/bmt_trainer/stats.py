"""Comparing two models on the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Standard deviations on either side of 95 %.
Z = 1.959964


@dataclass(frozen=True, slots=True)
class Paired:
    """gained, lost: examples that only the second, or only the first, answers; of total."""

    gained: int
    lost: int
    total: int

    @property
    def difference(self) -> float:
        """By how much the second's accuracy is above the first's."""
        return (self.gained - self.lost) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference of paired shares (Wald, with Agresti and Min's halves).

        Half an example is added to each of the four cells, so that no interval is of width 0.
        """
        b, c, n = self.gained + 0.5, self.lost + 0.5, self.total + 2
        middle = (b - c) / n
        half = Z * math.sqrt(b + c - (b - c) ** 2 / n) / n
        return max(-1.0, middle - half), min(1.0, middle + half)

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided test: of so uneven a split of those that differ, by chance."""
        n, k = self.gained + self.lost, min(self.gained, self.lost)
        tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        return min(1.0, 2 * tail)


def paired(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Which of the same examples were answered right, before and after."""
    pairs = list(zip(before, after, strict=True))
    return Paired(
        gained=sum(b and not a for a, b in pairs),
        lost=sum(a and not b for a, b in pairs),
        total=len(pairs),
    )


def mean_interval(scores: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """95 % interval of the unweighted mean of shares, each (right, total) of examples of its own.

    With Agresti and Coull's two successes and two failures, so that 0 of n has a width.
    """
    if not scores:
        return 0.0, 1.0
    adjusted = [((right + 2) / (total + 4), total + 4) for right, total in scores]
    middle = sum(share for share, _ in adjusted) / len(adjusted)
    variance = sum(share * (1 - share) / n for share, n in adjusted) / len(adjusted) ** 2
    half = Z * math.sqrt(variance)
    return max(0.0, middle - half), min(1.0, middle + half)


def quarter(total: int) -> int:
    """How many of `total` are held out where ⌊3/4⌋ are trained on (paper, appendix E)."""
    return total - total * 3 // 4
