"""Equality of a completion's last formula and a right answer, by math-verify. Imports no torch.

It may take all time and memory there is, for math-verify evaluates what it reads: 10^{10^{10}}, a
product of 100,000 factors. `workers` bounds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bmt_trainer.evaluation import answer_parsing as parse

# Relative difference of two numbers that are equal, as in SimpleRL-Zoo's grader.
_TOLERANCE = 1e-4


def equal(completion: str, answer: str) -> bool:
    """math-verify finds the completion's last formula equal to the answer.

    An answer that is a real number and no integer, or written with an exponent, is compared by its
    value with a relative tolerance of 1e-4, as SimpleRL-Zoo's grader has it.
    """
    from math_verify import parse as formulas
    from math_verify import verify

    # Without math-verify's own time limits, which end no loop outside of Python's own code.
    given = formulas(parse.without_exponents(completion), parsing_timeout=None)
    wanted = formulas(f"\\boxed{{{parse.without_exponents(answer)}}}", parsing_timeout=None)
    a, b = _value(given), _value(wanted)
    if a is not None and b is not None and (parse.has_exponent(answer) or not b.is_integer()):
        # math-verify rounds to six decimals, so that small numbers are all alike to it.
        return math.isclose(a, b, rel_tol=_TOLERANCE)
    return bool(verify(wanted, given, timeout_seconds=None))


def _value(found: Sequence[Any]) -> float | None:
    """The value of a formula that is a real number; None for others."""
    try:
        number = found[0].evalf(15)
        return float(number) if number.is_real else None
    except (AttributeError, IndexError, TypeError, ValueError, OverflowError):
        return None
