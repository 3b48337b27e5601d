"""Graders: strict and lenient reading of completions."""

import pytest
from bmt_trainer.errors import ConfigError
from bmt_trainer.evaluation.graders import find


@pytest.mark.parametrize(
    ("name", "text", "answer", "strict", "lenient"),
    [
        ("number", "12", "12", True, True),
        ("number", " 1,200 \n", "1200", True, True),
        ("number", "It is 12.", "12", False, True),
        ("number", "12 or 13", "12", False, False),
        ("number", "-4", "4", False, False),
        ("number", "", "4", False, False),
        ("gsm8k", "So 3 + 4 = 7\n#### 7", "7", True, True),
        ("gsm8k", "#### 1,000", "1000", True, True),
        ("gsm8k", "The answer is 7", "7", False, True),
        ("gsm8k", "#### 6\n#### 7", "7", True, True),
        ("gsm8k", "#### 7" + " word" * 100, "7", False, True),
        ("gsm8k", "####7", "7", False, True),
        ("words", "b a", "b a", True, True),
    ],
)
def test_readings(name, text, answer, strict, lenient):
    grader = find(name)
    assert (bool(grader.strict(text, answer)), bool(grader.lenient(text, answer))) == (
        strict,
        lenient,
    )


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="nothing"):
        find("nothing")
