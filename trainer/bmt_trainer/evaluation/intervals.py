"""Shares of right answers: their intervals, and two models on the same examples."""

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


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share; (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    share, z2 = right / total, Z * Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(scores: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """95 % interval of the unweighted mean of shares, each (right, total) of examples of its own.

    The distances to the Wilson bounds, added as squares (Newcombe 1998, method 10; Zou and Donner
    2008, MOVER): of one share its Wilson interval, and never without the mean itself.
    """
    if not scores:
        return 0.0, 1.0
    shares = [right / total for right, total in scores]
    bounds = [wilson(right, total) for right, total in scores]
    middle = math.fsum(shares) / len(shares)
    below = math.hypot(*(s - low for s, (low, _) in zip(shares, bounds, strict=True)))
    above = math.hypot(*(high - s for s, (_, high) in zip(shares, bounds, strict=True)))
    return max(0.0, middle - below / len(shares)), min(1.0, middle + above / len(shares))


def quarter(total: int) -> int:
    """How many of `total` are held out where ⌊3/4⌋ are trained on (paper, appendix E)."""
    return total - total * 3 // 4
