"""Reading answers of the paper's benchmarks: option letters, BBEH's free form, tool calls."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

_LETTER = r"\(?([A-J])\)?(?![A-Za-z])"
_BBEH = "the answer is:"


def letter_strict(completion: str, answer: str) -> bool:
    """The letter after the last "answer is"."""
    found = re.findall(rf"[Aa]nswer is:?\s*\**{_LETTER}", completion)
    return bool(found) and found[-1] == _letter(answer)


def letter_lenient(completion: str, answer: str) -> bool:
    """The last letter from A to J that stands alone or in brackets, however it is put."""
    found = re.findall(r"(?<![A-Za-z])(?:\(([A-J])\)|([B-HJ])(?![A-Za-z'])|(A|I)$)", completion)
    letters = [next(filter(None, groups)) for groups in found]
    return bool(letters) and letters[-1] == _letter(answer)


def _letter(answer: str) -> str:
    """Of "(C)", "C" or "The answer is (C)."; empty where there is none."""
    found = re.findall(rf"(?<![A-Za-z]){_LETTER}", answer)
    return found[-1] if found else ""


def bbeh_strict(completion: str, answer: str) -> bool:
    """What stands after the last "The answer is:" is the answer, but for its writing."""
    _, prefix, rest = completion.lower().rpartition(_BBEH)
    return bool(prefix) and _same(rest, _after(answer))


def bbeh_lenient(completion: str, answer: str) -> bool:
    """The same without the words before it: the last line that says something is read."""
    if bbeh_strict(completion, answer):
        return True
    lines = [line for line in completion.splitlines() if line.strip()]
    return bool(lines) and _same(_after(lines[-1]), _after(answer))


def _after(text: str) -> str:
    return text.lower().rpartition(_BBEH)[2]


def _same(given: str, wanted: str) -> bool:
    """Equal but for marks, brackets, quotation marks, spaces after commas, forms of numbers.

    The liberties that BBEH's own evaluation takes.
    """
    a, b = _plain(given), _plain(wanted)
    if a == b:
        return True
    try:
        return float(a) == float(b)
    except ValueError:
        return False


def _plain(text: str) -> str:
    lines = text.strip().splitlines()
    line = lines[0] if lines else ""
    line = re.sub(r"\\(?:boxed|text)\{([^{}]*)\}", r"\1", line).replace("**", "").replace("$", "")
    line = line.strip().rstrip(".?").strip()
    line = re.sub(r"\s*,\s*", ",", line)
    while len(line) > 1 and (line[0], line[-1]) in (("(", ")"), ("[", "]"), ("'", "'"), ('"', '"')):
        line = line[1:-1].strip()
    return line


def tools_strict(completion: str, answer: str) -> bool:
    """The same actions, as often, and the same arguments over all of them.

    SDFT's protocol: `Action:` and `Action Input:` are found by regular expression, and the inputs
    are merged into one dictionary. It ends an input at the first closing brace, so that nested
    arguments count as wrong; an input that is no JSON counts as none.
    """
    return _actions(completion) == _actions(answer) and _inputs(completion) == _wanted(answer)


def tools_lenient(completion: str, answer: str) -> bool:
    """The same actions, as often, whatever their arguments."""
    return _actions(completion) == _actions(answer)


def _actions(text: str) -> Counter[str]:
    return Counter(re.findall(r"Action:\s*(\w+)", text))


def _inputs(text: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for found in re.findall(r"Action Input:\s*({.*?})", text, re.DOTALL):
        try:
            merged |= json.loads(found)
        except ValueError:
            continue
    return merged


def _wanted(answer: str) -> dict[str, Any]:
    """Of an answer as `tool_calls` writes it: an input a line, so that nesting is no matter."""
    merged: dict[str, Any] = {}
    for line in answer.splitlines():
        _, prefix, rest = line.partition("Action Input:")
        if prefix:
            merged |= json.loads(rest)
    return merged
