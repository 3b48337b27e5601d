"""Bound on the repetitions of regular expressions, which backends expand one inside the other.

As the pattern of a JSON schema, xgrammar reads `(a{1,9999}){1,9999}` for seconds on the event loop.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vllm.exceptions import VLLMValidationError

MAX_REPETITIONS = 1_000_000


def check_repetitions(params: Any) -> None:
    """Raise VLLMValidationError for a regular expression that repeats too much.

    params: vLLM's StructuredOutputsParams.
    """
    grammar = getattr(params, "grammar", None)
    for text in [grammar] if isinstance(grammar, str) else []:
        # A grammar's own length is bounded as a body is; what its repetitions add, here.
        if (size := expanded_size(text)) > max(MAX_REPETITIONS, len(text)):
            raise VLLMValidationError(
                f"a grammar has {size} symbols when its repetitions are expanded; allowed: "
                f"{MAX_REPETITIONS}"
            )
    for pattern in _patterns(params):
        if (size := expanded_size(pattern)) > MAX_REPETITIONS:
            raise VLLMValidationError(
                f"a regular expression has {size} characters when its repetitions are expanded; "
                f"allowed: {MAX_REPETITIONS}"
            )


def expanded_size(pattern: str) -> int:
    """Characters of a pattern with each `{m,n}` written n times, and each `{m,}` m times."""
    totals, last, at = [0], 0, 0
    while at < len(pattern):
        character, end = pattern[at], at + 1
        closed = pattern.find("}", at) if character == "{" else -1
        if closed > 0 and (times := _times(pattern[at + 1 : closed])) is not None:
            totals[-1] += last * (max(times, 1) - 1)
            last *= max(times, 1)
            at = closed + 1
            continue
        if character == "(":
            totals.append(0)
        elif character == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        elif character not in "|*+?^$":
            if character == "\\":
                end = at + 2
            elif character == "[":
                end = _end_of_class(pattern, at)
            last = 1
            totals[-1] += 1
        at = end
    return sum(totals)


def _times(text: str) -> int | None:
    least, comma, most = text.partition(",")
    number = most.strip() if comma and most.strip() else least.strip()
    # Python refuses to read numbers of thousands of digits.
    return int(number[:30]) if number.isascii() and number.isdigit() else None


def _end_of_class(pattern: str, at: int) -> int:
    at += 2 if pattern[at + 1 : at + 2] == "]" else 1
    while at < len(pattern) and pattern[at] != "]":
        at += 2 if pattern[at] == "\\" else 1
    return at + 1


def _patterns(params: Any) -> Iterator[str]:
    if params.regex:
        yield params.regex
    for schema in (params.json, params.structural_tag):
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError):
                continue
        yield from _patterns_of_schema(schema)


def _patterns_of_schema(schema: Any) -> Iterator[str]:
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            if isinstance(node.get("pattern"), str):
                yield node["pattern"]
            named = node.get("patternProperties")
            if isinstance(named, dict):
                yield from named
            pending += node.values()
