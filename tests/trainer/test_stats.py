"""Paired comparison of two models."""

import itertools
import random

import pytest
from bmt_trainer.stats import Paired, paired


def test_pairs_are_counted():
    before, after = [True, True, False, False, False], [True, False, True, True, False]
    assert paired(before, after) == Paired(gained=2, lost=1, total=5)
    with pytest.raises(ValueError, match="shorter"):
        paired([True], [])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 0), (0, 5), (4, 4), (7, 2), (1, 9)])
def test_the_p_value_is_that_of_all_signs_listed(gained, lost):
    """Every way in which as many coins can fall, at least as uneven as what was seen."""
    n = gained + lost
    sums = [abs(sum(signs)) for signs in itertools.product((-1, 1), repeat=n)]
    listed = sum(s >= abs(gained - lost) for s in sums) / len(sums)
    assert Paired(gained, lost, 100).p_value == pytest.approx(listed)


def test_the_interval_covers_as_often_as_it_says():
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
