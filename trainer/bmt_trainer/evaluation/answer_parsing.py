"""Reading of answers in text: words, numbers, option letters, BBEH's free form, tool calls.

Each function maps text to the answer that it states; `graders` compares that with the right one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Decimal
from typing import Any

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
# verl reads only the last 300 characters of an answer (utils/reward_score/gsm8k.py).
_GSM8K_TAIL = 300
_LETTER = r"\(?([A-J])\)?(?![A-Za-z])"
_GSM8K_ANSWER = r"#### (-?[\d.,]+)"
# The words before an answer that BBEH's evaluator knows, with and without "final" and a colon.
_BBEH_PREFIX = re.compile(r"the (?:final )?answer is(?::|\s)")
# A number in exponent notation that is no part of a word or of another number.
_EXPONENT = re.compile(r"(?<![\w.\\])\d+(?:\.\d+)?[eE][-+]?\d{1,3}(?![\w.]|\.\d)")


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation and markup."""
    return re.findall(r"\w+", text.lower())


def number(text: str) -> float | None:
    """The value of text that is a number; commas are thousands separators."""
    try:
        return float(text.strip().replace(",", ""))
    except ValueError:
        return None


def only_number(text: str) -> float | None:
    """The value of text that is a number and nothing else, in plain notation."""
    return number(text) if re.fullmatch(_NUMBER, text.strip()) else None


def last_number(text: str) -> float | None:
    """The last number in the text."""
    matches = re.findall(_NUMBER, text)
    return number(matches[-1]) if matches else None


def gsm8k_text(text: str) -> str | None:
    """The text after the last `#### ` near the end, without commas, as verl's GSM8K reward has it.

    Digits, points and commas: a point that ends a sentence is a part of it.
    """
    matches = re.findall(_GSM8K_ANSWER, text[-_GSM8K_TAIL:])
    return matches[-1].replace(",", "") if matches else None


def without_exponents(text: str) -> str:
    """The text with numbers such as 4.5e33 in digits: in a formula, e is the base of logarithms."""
    return _EXPONENT.sub(lambda match: format(Decimal(match[0]), "f"), text)


def has_exponent(text: str) -> bool:
    """True for text that is one number in exponent notation."""
    return _EXPONENT.fullmatch(text.strip().lstrip("+-")) is not None


def stated_letter(text: str) -> str | None:
    """The option letter after the last "answer is"."""
    matches = re.findall(rf"[Aa]nswer is:?\s*\**{_LETTER}", text)
    return matches[-1] if matches else None


def last_letter(text: str) -> str | None:
    """The last option letter, A to J, that stands alone or in brackets.

    A and I, which are also words, count only in brackets or at the end.
    """
    matches = re.findall(r"(?<![A-Za-z])(?:\(([A-J])\)|([B-HJ])(?![A-Za-z'])|(A|I)$)", text)
    letters = [next(filter(None, groups)) for groups in matches]
    return letters[-1] if letters else None


def reference_letter(answer: str) -> str | None:
    """The letter of a right answer: of "(C)", "C" or "The answer is (C)."."""
    matches = re.findall(rf"(?<![A-Za-z]){_LETTER}", answer)
    return matches[-1] if matches else None


def bbeh_answer(text: str) -> str:
    """The text after the last "The answer is", in lower case; all of it without these words.

    As BBEH's evaluator: "The final answer is" too, each with a colon or without.
    """
    return _BBEH_PREFIX.split(text.lower())[-1]


def bbeh_last_line(text: str) -> str | None:
    """The answer in the last line that is not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    return bbeh_answer(lines[-1]) if lines else None


def bbeh_normalized(text: str) -> str:
    """The first line without markup, outer brackets and quotation marks, spaces around commas.

    The normalization of BBEH's own evaluation.
    """
    lines = text.strip().splitlines()
    line = lines[0] if lines else ""
    line = re.sub(r"\\(?:boxed|text)\{([^{}]*)\}", r"\1", line).replace("**", "").replace("$", "")
    line = line.strip().rstrip(".?").strip()
    line = re.sub(r"\s*,\s*", ",", line)
    while len(line) > 1 and (line[0], line[-1]) in (("(", ")"), ("[", "]"), ("'", "'"), ('"', '"')):
        line = line[1:-1].strip()
    return line


def tool_names(text: str) -> Counter[str]:
    """Names after `Action:`, each with its count."""
    return Counter(re.findall(r"Action:\s*(\w+)", text))


def tool_arguments(text: str) -> dict[str, Any]:
    """Arguments of all calls in a completion, merged, by SDFT's regular expression.

    The expression ends an input at the first closing brace, so that nested arguments are never
    right; an input that is not JSON adds nothing.
    """
    merged: dict[str, Any] = {}
    for match in re.findall(r"Action Input:\s*({.*?})", text, re.DOTALL):
        try:
            merged |= json.loads(match)
        except (ValueError, RecursionError):
            continue
    return merged


def reference_arguments(answer: str) -> dict[str, Any]:
    """Arguments of all calls in a right answer, merged, nested ones included.

    The answer is as `data.benchmark_formats.tool_calls` writes it: an input is one line.
    """
    merged: dict[str, Any] = {}
    for line in answer.splitlines():
        _, prefix, rest = line.partition("Action Input:")
        if prefix:
            merged |= json.loads(rest)
    return merged
