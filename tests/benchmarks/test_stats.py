"""Medians over pairs, their intervals, and how popularity is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness.stats import estimate, quantile_ratio, zipf


def test_the_value_is_the_median_over_pairs_of_medians_over_turns():
    found = estimate([[1.0, 9.0, 2.0], [3.0], [10.0, 20.0]])
    assert found.value == 3.0  # of 2, 3 and 15, where all turns together have the median 6
    assert (found.pairs, found.turns) == (3, 6)


def test_the_interval_holds_the_value_and_grows_with_the_spread():
    narrow = estimate([[0.99, 1.0], [1.0, 1.01], [1.0, 1.0], [0.99, 1.01], [1.0, 1.0]])
    wide = estimate([[0.8, 1.0], [1.0, 1.2], [1.0, 1.0], [0.7, 1.3], [1.0, 1.0]])
    for found in (narrow, wide):
        assert found.low <= found.value <= found.high
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_the_interval_is_of_pairs_not_of_turns():
    """A thousand turns in two processes that differ know no more than the two processes."""
    few = estimate([[0.9] * 3, [1.1] * 3])
    many = estimate([[0.9] * 1000, [1.1] * 1000])
    assert (few.low, few.high) == (many.low, many.high) == (0.9, 1.1)


def test_about_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        pairs = [rng.normal(1.0, 0.02, 6) + rng.normal(0, 0.02) for _ in range(12)]
        found = estimate([list(p) for p in pairs])
        held += found.low <= 1.0 <= found.high
    assert 85 <= held <= 100


def test_nothing_measured_is_an_error():
    with pytest.raises(ValueError, match="no turns"):
        estimate([[], []])


def test_the_ratio_of_quantiles():
    found = quantile_ratio([2.0] * 50, [1.0] * 50, 0.99)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    rng = np.random.default_rng(0)
    spread = quantile_ratio(rng.exponential(1, 200), rng.exponential(1, 200), 0.99)
    assert spread.low < 1.0 < spread.high


def test_zipf_draws_what_it_says():
    draws = np.bincount(zipf(10, 20000, 1.0, seed=0), minlength=10) / 20000
    weights = 1 / np.arange(1, 11)
    assert np.abs(draws - weights / weights.sum()).max() < 0.015
    uniform = np.bincount(zipf(10, 20000, 0.0, seed=0), minlength=10) / 20000
    assert np.abs(uniform - 0.1).max() < 0.015
    assert zipf(10, 50, 1.0, seed=3) == zipf(10, 50, 1.0, seed=3) != zipf(10, 50, 1.0, seed=4)
