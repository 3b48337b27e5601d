"""Warnings of runs that do not learn, by the logs of their steps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from bmt_trainer.rewards.watch import Limits, Watch, found

LIMITS = Limits(completions=4, max_new_tokens=64, regularized=True)


def steps(count=5, **values):
    """Logs of steps; a value is one number, or one of each step."""
    fields = {"frac_reward_zero_std": 0.5, "completions/clipped_ratio": 0.0, "reward": 0.3}
    fields |= {"closed_gates": [100 - n for n in range(count)], **values}
    lists = {k: v if isinstance(v, list) else [v] * count for k, v in fields.items()}
    return [{"step": n + 1, **{k: v[n] for k, v in lists.items()}} for n in range(count)]


FLAT = {"frac_reward_zero_std": 1.0, "reward": 0.0}
CLIPPED = {"completions/clipped_ratio": 0.9}


@pytest.mark.found
@pytest.mark.parametrize(
    ("values", "causes"),
    [
        ({}, set()),
        (FLAT, {"flat", "regularizer"}),
        (FLAT | {"closed_gates": 7}, {"flat", "still"}),
        (FLAT | CLIPPED, {"flat", "regularizer", "clipped"}),
        (CLIPPED, {"clipped"}),
        ({"closed_gates": 7}, {"still"}),
        ({"reward": math.nan}, {"inapplicable"}),
        ({"reward": [math.nan, 0.2, 0.2, 0.2, 0.2]}, set()),
        (FLAT | {"frac_reward_zero_std": [1.0, 1.0, 0.9, 1.0, 1.0]}, set()),
        ({"completions/clipped_ratio": [0.9, 0.0, 0.0, 0.0, 0.0]}, set()),
        ({"closed_gates": [7, 7, 8, 7, 7]}, set()),
    ],
)
def test_causes(values, causes):
    assert found(steps(**values), LIMITS).keys() == causes


@pytest.mark.found
def test_warnings_have_the_numbers_and_a_fix():
    lines = found(
        steps(**FLAT, **CLIPPED, closed_gates=[38627, 30000, 28000, 25000, 23384]), LIMITS
    )
    assert "steps 1 to 5: no group of 4 answers" in lines["flat"]
    assert "mean 0; 90% cut off" in lines["flat"]
    assert "raise max_new_tokens" in lines["flat"]
    assert "90% of the answers were cut off at max_new_tokens 64; raise it" in lines["clipped"]
    assert "38,627 to 23,384 closed gates" in lines["regularizer"]
    assert "reg_lambda" in lines["regularizer"]
    assert all("\n" not in line for line in lines.values())
    assert "regularizer" not in found(steps(**FLAT), Limits(4, 64, regularized=False))


def watched(logs, most=9, before=None):
    said, kept = [], []
    watch = Watch(LIMITS, say=said.append, keep=lambda w: kept.append(dict(w)), before=before or {})
    history = []
    for at, entry in enumerate(logs):
        history.append(entry)
        watch.on_log(None, SimpleNamespace(log_history=history, max_steps=most), None)
        if said:
            return watch, said, at + 1, kept
    return watch, said, None, kept


def test_each_warning_is_given_once_as_soon_as_its_steps_are_there():
    watch, said, at, kept = watched(steps(9, **FLAT))
    assert at == 5
    assert len(said) == len(watch.warnings) == 2
    assert list(kept[-1]) == ["flat", "regularizer"]
    # A resumed run does not repeat it, and still has it for the end.
    watch, said, at, _ = watched(steps(9, **FLAT), before=kept[-1])
    assert (said, at, len(watch.warnings)) == ([], None, 2)


def test_a_run_that_is_shorter_than_the_window_is_warned_of_at_its_end():
    assert watched(steps(3, **FLAT), most=3)[2] == 3
    assert watched(steps(1, **FLAT), most=1)[2] == 1


def test_a_run_that_recovers_in_time_is_not_warned_of():
    flat = [1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0]
    assert watched(steps(7, frac_reward_zero_std=flat))[1] == []
