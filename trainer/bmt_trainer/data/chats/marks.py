"""Marks in place of the texts of a chat, to see which of them a chat template writes.

A mark cannot be found in a rendering by accident, as a short text can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bmt_trainer.data.examples import Message

#: The beginning of every mark.
MARK = "Zq7"


class Marks:
    """Marks, each with the field that it stands for."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def __call__(self, field: str) -> str:
        """A new mark for a field."""
        name = f"{MARK}x{len(self._fields)}z"
        self._fields[name] = field
        return name

    def missing(self, text: str) -> str | None:
        """The first field whose mark is not in a text, or None."""
        return next((field for name, field in self._fields.items() if name not in text), None)


def leaves(value: Any) -> Iterator[Any]:
    """The keys, texts and numbers of a call's arguments."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield from leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield value


def written(value: Any) -> Iterator[str]:
    """The forms in which templates write a text or a number."""
    yield str(value)
    for ascii_only in (False, True):
        written = json.dumps(value, ensure_ascii=ascii_only)
        yield written[1:-1] if isinstance(value, str) else written
    yield repr(value)[1:-1] if isinstance(value, str) else repr(value)


def shape(value: Any) -> Any:
    """A value with each text replaced by True, or False if it is blank, except roles and ids."""
    if isinstance(value, Mapping):
        return {k: v if k in ("role", "id") else shape(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [shape(part) for part in value]
    return bool(value.strip()) if isinstance(value, str) else type(value).__name__


def marked_calls(message: Message, place: str, mark: Callable[[str], str]) -> dict[str, Any]:
    """The calls of a message with marks for their functions' names and arguments."""
    calls = []
    for number, call in enumerate(message.get("tool_calls", ())):
        where = f"{place}, tool_calls[{number}].function"
        name = mark(f"{where}.name")
        arguments = {
            mark(f"{where}.arguments"): mark(f"{where}.arguments")
            for _ in call["function"]["arguments"]
        }
        function = {"name": name, "arguments": arguments}
        calls.append({**call, "function": function})
    return {"tool_calls": calls} if calls else {}


def marked_tool(tool: Mapping[str, Any], where: str, mark: Callable[[str], str]) -> dict[str, Any]:
    """A tool with marks for its name, its description and its parameters' names."""
    function = dict(tool["function"])
    function["name"] = mark(f"{where}.function.name")
    if function.get("description"):
        function["description"] = mark(f"{where}.function.description")
    parameters = function.get("parameters")
    if isinstance(parameters, Mapping) and parameters.get("properties"):
        name = mark(f"{where}.function.parameters")
        made: dict[str, Any] = {"type": "object", "properties": {name: {"type": "string"}}}
        function["parameters"] = made | ({"required": [name]} if "required" in parameters else {})
    return {**tool, "function": function}
