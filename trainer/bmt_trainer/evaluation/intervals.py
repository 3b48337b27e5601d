"""Confidence intervals of accuracies, and the paired comparison of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Standard deviations on either side of the mean that enclose 95 % of a normal distribution.
Z = 1.959964
# Values that are closer differ by rounding alone: 0.7 - 0.6 and 0.8 - 0.7 are equal shares.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Paired:
    """Outcomes of two models on the same `total` examples.

    gained, lost: examples that only the second model, or only the first, answers correctly.
    """

    gained: int
    lost: int
    total: int

    @property
    def difference(self) -> float:
        """The second model's accuracy minus the first's."""
        return (self.gained - self.lost) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference of paired proportions (Wald, adjusted by Agresti-Min).

        Half an example is added to each of the four cells, so that no interval has width 0.
        """
        b, c, n = self.gained + 0.5, self.lost + 0.5, self.total + 2
        middle = (b - c) / n
        half = Z * math.sqrt(b + c - (b - c) ** 2 / n) / n
        return max(-1.0, middle - half), min(1.0, middle + half)

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided test of `gained` against `lost`."""
        n, k = self.gained + self.lost, min(self.gained, self.lost)
        tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        return min(1.0, 2 * tail)


def paired(before: Sequence[bool], after: Sequence[bool]) -> Paired:
    """Compare two models; before, after: True for each example that is right, in one order."""
    pairs = list(zip(before, after, strict=True))
    return Paired(
        gained=sum(b and not a for a, b in pairs),
        lost=sum(a and not b for a, b in pairs),
        total=len(pairs),
    )


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion; (0, 1) if `total` is 0."""
    if not total:
        return 0.0, 1.0
    share, z2 = right / total, Z * Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of `values`: Wilson's if all are 0 or 1, else Student's t.

    One value has no spread to estimate an interval from: its own value twice.
    """
    if all(value in (0, 1) for value in values):
        return wilson(int(sum(values)), len(values))
    return student(values)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of `values`; of one value, it twice."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, mean
    half = _t_quantile(n - 1) * _standard_error(values)
    return mean - half, mean + half


@dataclass(frozen=True, slots=True)
class OverRuns:
    """Differences of two methods, paired by run, such as by seed.

    difference: their mean; interval: Student's 95 % interval of it; p_value: of the paired t-test,
    NaN if all differences are equal; runs: their number, 2 at least.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    runs: int


def over_runs(differences: Sequence[float]) -> OverRuns:
    """Compare two methods by the difference of each run."""
    n = len(differences)
    mean, error = math.fsum(differences) / n, _standard_error(differences)
    p = _t_two_sided(mean / error, n - 1) if error else math.nan
    return OverRuns(mean, student(differences), p, n)


def differ(values: Sequence[float]) -> bool:
    """True if the values have a spread, beyond the rounding of their arithmetic."""
    return max(values) - min(values) > _ROUNDING


def _standard_error(values: Sequence[float]) -> float:
    if not differ(values):
        return 0.0
    n = len(values)
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _t_two_sided(t: float, freedom: int) -> float:
    """P(|T| > |t|) of Student's t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(abs(t), math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = total = (cosine if freedom > 1 else 0.0) if odd else 1.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - inside))


def _t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; within 1 % from 3 degrees of freedom on.

    The Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5); 1 and 2 degrees are exact.
    """
    if freedom <= 2:
        return (12.7062, 4.3027)[freedom - 1]
    z, v = Z, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def mean_interval(scores: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """95 % interval of the unweighted mean of proportions, each (right, total) of its own examples.

    The root of the summed squares of the distances to the Wilson bounds (Newcombe 1998, method 10;
    Zou and Donner 2008, MOVER). For one proportion it is the Wilson interval; it always contains
    the mean.
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
    """Held-out examples of `total` if ⌊3/4⌋ are trained on (paper, appendix E)."""
    return total - total * 3 // 4
