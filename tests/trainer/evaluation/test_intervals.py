"""Confidence intervals of accuracies, and the paired comparison of two models."""

import itertools
import math
import random

import pytest
from bmt_trainer.evaluation.intervals import Paired, mean_interval, paired, wilson


def test_pairs_are_counted():
    before, after = [True, True, False, False, False], [True, False, True, True, False]
    assert paired(before, after) == Paired(gained=2, lost=1, total=5)
    with pytest.raises(ValueError, match="shorter"):
        paired([True], [])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 0), (0, 5), (4, 4), (7, 2), (1, 9)])
def test_the_p_value_equals_the_enumeration_of_all_signs(gained, lost):
    """The share of all sign patterns that are at least as uneven as the observed one."""
    n = gained + lost
    sums = [abs(sum(signs)) for signs in itertools.product((-1, 1), repeat=n)]
    listed = sum(s >= abs(gained - lost) for s in sums) / len(sums)
    assert Paired(gained, lost, 100).p_value == pytest.approx(listed)


def test_the_paired_interval_has_its_nominal_coverage():
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        before = [draw.random() < 0.5 for _ in range(120)]
        after = [b if draw.random() < 0.7 else draw.random() < 0.8 for b in before]
        low, high = paired(before, after).interval
        hits += low <= 0.3 * (0.8 - 0.5) <= high
    assert 0.93 <= hits / 2000 <= 0.97


def test_nothing_changed():
    same = Paired(0, 0, 50)
    assert (same.difference, same.p_value) == (0, 1)
    assert same.interval[0] < 0 < same.interval[1]


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # With z² = 3.841459: z²/(n + z²) at 0, 1/2 ± z/(2 √(n + z²)) at a half, n/(n + z²) at 1.
    [(0, 400, 0.0, 0.009512), (200, 400, 0.451235, 0.548765), (10, 10, 0.722467, 1.0)],
)
def test_wilson(right, total, low, high):
    assert wilson(right, total) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


def test_wilson_without_examples():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("scores", [[(0, 30), (0, 50), (10, 338)], [(30, 30), (49, 50)], [(7, 9)]])
def test_a_mean_lies_within_its_interval(scores):
    low, high = mean_interval(scores)
    assert low <= sum(right / total for right, total in scores) / len(scores) <= high
    assert high - low > 0.01
    if len(scores) == 1:
        assert (low, high) == pytest.approx(wilson(*scores[0]))


@pytest.mark.parametrize("shares", [(0.02, 0.4), (0.07, 0.07), (0.5, 0.9)])
def test_the_interval_of_a_mean_has_its_nominal_coverage(shares):
    """Sums over all outcomes of two sets, each with its probability."""
    sizes = (30, 50)
    weights = [
        [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        for n, p in zip(sizes, shares, strict=True)
    ]
    covered = 0.0
    for a, b in itertools.product(range(sizes[0] + 1), range(sizes[1] + 1)):
        low, high = mean_interval([(a, sizes[0]), (b, sizes[1])])
        covered += (low <= sum(shares) / 2 <= high) * weights[0][a] * weights[1][b]
    assert 0.93 <= covered <= 0.975
