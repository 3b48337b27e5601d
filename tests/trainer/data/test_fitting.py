"""Rows and answers within the lengths that a run allows."""

from __future__ import annotations

import pytest
from bmt_trainer.data.fitting import answer_room, fit
from bmt_trainer.errors import DataError


def row(context, learnt, after=0):
    mask = [0] * context + [1] * learnt + [0] * after
    return {"input_ids": list(range(len(mask))), "completion_mask": mask}


ROWS = [row(4, 4), row(10, 3), row(2, 12), row(12, 0), row(3, 2, after=9)]


def test_short_rows_stay_as_they_are_whatever_the_choice():
    for choice in ("drop", "truncate-left", "truncate-right", "error"):
        fitted = fit(ROWS[:2], 13, choice)
        assert (fitted.rows, fitted.kept) == (ROWS[:2], [0, 1])
        assert (fitted.overlong, fitted.truncated, fitted.dropped) == (0, 0, {})
        assert fitted.notes(13) == []


def test_long_rows_are_left_out_and_counted():
    fitted = fit(ROWS, 8)
    assert fitted.kept == [0]
    assert fitted.overlong == 4
    assert fitted.dropped == {"longer than max_length, 8 tokens": 4}
    [line] = fitted.notes(8)
    assert "4 examples" in line


def test_cut_at_the_beginning():
    fitted = fit(ROWS, 8, "truncate-left")
    assert fitted.kept == [0, 1, 2]
    assert fitted.rows[1] == {"input_ids": list(range(5, 13)), "completion_mask": [0] * 5 + [1] * 3}
    assert fitted.rows[2]["completion_mask"] == [1] * 8
    # Row 4 has nothing learnt, and of row 5 nothing learnt is among its last 8 tokens.
    assert fitted.truncated == 2
    assert fitted.dropped == {"nothing to learn is left by truncation": 2}


def test_cut_at_the_end():
    fitted = fit(ROWS, 8, "truncate-right")
    assert fitted.kept == [0, 2, 4]
    assert fitted.rows[1] == {"input_ids": list(range(8)), "completion_mask": [0] * 2 + [1] * 6}
    assert (fitted.overlong, fitted.truncated) == (4, 2)
    assert sum(fitted.dropped.values()) == 2


def test_a_learnt_token_that_nothing_predicts_is_nothing_to_learn():
    """After truncation the only learnt token is the first: the loss would be NaN."""
    fitted = fit([row(7, 1, after=4)], 5, "truncate-left")
    assert fitted.rows == []
    assert fit([row(7, 1, after=4)], 6, "truncate-left").kept == [0]
    assert fit([row(0, 1)], 6).dropped == {"nothing to learn": 1}


def test_an_error_names_the_row_and_its_length():
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: 13 tokens.*max_length 8"):
        fit(ROWS, 8, "error", ["a.jsonl, line 1", "a.jsonl, line 2"])


def test_answers_get_the_room_that_the_longest_prompt_leaves():
    prompts = [("line 1", 10), ("line 2", 40), ("line 3", 20)]
    assert answer_room(prompts, 60, 100) == (60, None)
    assert answer_room(prompts, 4096, None) == (4096, None)
    assert answer_room([], 64, 100) == (64, None)
    room, line = answer_room(prompts, 4096, 100)
    assert room == 60
    assert "line 2" in line
    assert answer_room([("x", 99)], 5, 100)[0] == 1
    with pytest.raises(DataError, match="line 2"):
        answer_room(prompts, 1, 40)
