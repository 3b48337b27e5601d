"""Tool calls in an answer's text, in whatever wrapping its chat template gives them.

Two forms are read: JSON objects with `name` and `arguments` (Llama: `parameters`), alone, in a
list or under `function`; and `<function=NAME><parameter=KEY>VALUE</parameter></function>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_DECODER = json.JSONDecoder()
_TAGGED = re.compile(r"<function=([^\s>]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^\s>]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
# Left of a call that could not be read.
_REMAINS = re.compile(
    r'"(?:name|arguments|parameters)"\s*:|<function=|</function>|<parameter=|</parameter>'
)
# What stands between the tags of a call.
_WRAPPING = re.compile(r"<tool_call>([^<]*)</tool_call>")


@dataclass(frozen=True)
class Calls:
    """Calls of one answer: (name, arguments as canonical JSON) of each, in order.

    whole: nothing is left of a call that is cut off, malformed or not closed.
    """

    items: tuple[tuple[str, str], ...]
    whole: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.items)


def calls_in(text: str) -> Calls:
    """The calls in an answer."""
    found, rest, end = [], [], 0
    for start, stop, name, arguments in _spans(text):
        found.append((name, canonical(arguments)))
        rest.append(text[end:start])
        end = stop
    # A mark in place of each call, so that a wrapping with none or with two of them shows.
    left = "\0".join([*rest, text[end:]])
    wrapped = _WRAPPING.findall(left)
    tags = left.count("<tool_call>"), left.count("</tool_call>")
    whole = (
        not _REMAINS.search(left)
        and tags == (len(wrapped), len(wrapped))
        and all(inner.strip() == "\0" for inner in wrapped)
    )
    return Calls(tuple(found), whole)


def canonical(value: Any) -> str:
    """JSON text that is equal for equal JSON values: keys sorted, 1.0 as 1, true apart from 1."""
    return json.dumps(_numbers(value), sort_keys=True, ensure_ascii=False)


def _numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return value


def _spans(text: str) -> Iterator[tuple[int, int, str, Any]]:
    """(start, end, name, arguments) of each call, in order and without overlap."""
    at = 0
    while True:
        tagged = _TAGGED.search(text, at)
        brace = text.find("{", at)
        if tagged and (brace < 0 or tagged.start() < brace):
            yield tagged.start(), tagged.end(), tagged[1], _tagged_arguments(tagged[2])
            at = tagged.end()
        elif brace < 0:
            return
        elif (call := _json_call(text, brace)) is not None:
            yield brace, *call
            at = call[0]
        else:
            at = brace + 1


def _json_call(text: str, start: int) -> tuple[int, str, Any] | None:
    """(end, name, arguments) of the JSON call that begins at `start`; None for anything else."""
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name")
    for key in ("arguments", "parameters"):
        if isinstance(name, str) and key in value:
            return end, name, value[key]
    return None


def _tagged_arguments(body: str) -> dict[str, Any]:
    """Values of `<parameter=KEY>` tags: JSON if they are, else text."""
    values: dict[str, Any] = {}
    for key, raw in _PARAMETER.findall(body):
        try:
            values[key] = json.loads(raw)
        except (ValueError, RecursionError):
            values[key] = raw
    return values
