"""Rows of files for fine-tuning, in OpenAI's three forms, checked with row and field.

::

    messages [tools]                                         supervised: the assistant speaks last
    input, preferred_output, non_preferred_output            dpo
    messages [tools] and further columns for the grader      reinforcement: the user speaks last

A file has rows of one form. Memory is bounded by one row; `check` is for a thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec
from bmt_core import RowError
from bmt_core.fine_tuning import messages as shared

from bmt_server.errors import BadRequest
from bmt_server.registry.files.record import RowForm

MAX_ROW_BYTES = 1 << 20
MAX_ROWS = 2_000_000
_MAX_COLUMNS, _MAX_DEPTH = 64, 64
_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE = {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "reasoning_content"}
_INPUT = {"messages", "tools", "parallel_tool_calls"}
_PAIR = {"input", "preferred_output", "non_preferred_output"}
_OUTPUTS = ("preferred_output", "non_preferred_output")


@dataclass(frozen=True)
class Checked:
    """Form and number of rows of a file."""

    form: RowForm
    rows: int


class _Wrong(Exception):
    """A field of a row that is not valid. args: the field and the reason."""


def check(file: BinaryIO) -> Checked:
    """Check a file from its beginning. Raises BadRequest for the first row that is not valid."""
    form: RowForm | None = None
    number = rows = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise _refusal(number, "", f"longer than {MAX_ROW_BYTES} bytes")
        if not line.strip():
            continue
        rows += 1
        if rows > MAX_ROWS:
            raise _refusal(number, "", f"beyond the {MAX_ROWS} rows that a file may have")
        try:
            found = form_of(_parse(line))
        except _Wrong as wrong:
            raise _refusal(number, *wrong.args) from None
        except RecursionError:
            raise _refusal(number, "", "too deeply nested") from None
        if form is not None and found != form:
            raise _refusal(number, "", f"its form is {found}, and that of the rows before {form}")
        form = found
    if form is None:
        raise BadRequest("the file has no rows", code="invalid_file", param="file")
    return Checked(form, rows)


def _refusal(number: int, field: str, why: str) -> BadRequest:
    place = f"row {number}" + (f", {field}" if field else "")
    return BadRequest(f"{place}: {why}", code="invalid_file", param="file")


def _parse(line: bytes) -> Mapping[str, Any]:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _Wrong("", f"not JSON on one line ({str(error)[:120]})") from None
    if not isinstance(row, dict):
        raise _Wrong("", f"expected an object, not {_shown(row)}")
    if len(row) > _MAX_COLUMNS:
        raise _Wrong("", f"{len(row)} columns, and {_MAX_COLUMNS} are allowed")
    _check_depth(line, row, "")
    return row


def _check_depth(text: bytes | str, value: Any, field: str) -> None:
    """Raise _Wrong for a value that is nested deeper than every reader of the file can follow."""
    opens: tuple[Any, Any] = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(map(text.count, opens)) <= _MAX_DEPTH:  # nearly always
        return
    level, depth = [value], 0
    while level := [
        inner
        for outer in level
        if isinstance(outer, dict | list)
        for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise _Wrong(field, f"nested deeper than {_MAX_DEPTH} levels, which are allowed")


def form_of(row: Mapping[str, Any]) -> RowForm:
    """The form of a row, all of whose fields are checked."""
    if _PAIR & row.keys():
        _check_pair(row)
        return "dpo"
    if "messages" not in row:
        raise _Wrong("", f"has neither messages nor input; its columns are {_columns(row)}")
    messages = _check_messages(row["messages"], "messages")
    _check_tools(row)
    last = messages[-1]["role"]
    if last in ("user", "tool"):
        _check_plain(row, messages)
        return "reinforcement"
    if last != "assistant":
        raise _Wrong(f"messages[{len(messages) - 1}].role", f"{last} cannot be the last message")
    if extra := row.keys() - _INPUT:
        raise _Wrong(
            sorted(extra)[0],
            "no column of supervised rows; for reinforcement, the last message is the user's",
        )
    _check_answer(row["messages"], "messages")
    return "supervised"


def _check_plain(row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise _Wrong for a prompt that rollouts would change: their tools are the run's."""
    if row.get("tools"):
        raise _Wrong("tools", "rows of reinforcement have none; learn calls by supervised rows")
    for number, message in enumerate(messages):
        if message.get("tool_calls"):
            raise _Wrong(
                f"messages[{number}].tool_calls",
                "rows of reinforcement have none; learn calls by supervised rows",
            )


def _check_answer(messages: Sequence[Mapping[str, Any]], field: str, before: int = 0) -> None:
    """Raise _Wrong unless a turn of the assistant is learnt, and the last such turn says something.

    before: turns that stand before these.
    """
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    learnt = [at for at in turns if messages[at].get("weight") != 0]
    if not learnt:
        raise _Wrong(field, "every assistant message has weight 0, so nothing is learnt")
    last = learnt[-1]
    if not last + before:
        raise _Wrong(f"{field}[0]", "the assistant answers no message; put one before it")
    if not _text(messages[last]).strip() and not messages[last].get("tool_calls"):
        raise _Wrong(f"{field}[{last}].content", "empty, so the model would learn to say nothing")


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _check_pair(row: Mapping[str, Any]) -> None:
    for name in sorted(_PAIR):
        if name not in row:
            raise _Wrong(name, "missing")
    if extra := row.keys() - _PAIR:
        raise _Wrong(sorted(extra)[0], "no column of rows of preferences")
    given = row["input"]
    if not isinstance(given, dict):
        raise _Wrong("input", f"expected an object with messages, not {_shown(given)}")
    if extra := given.keys() - _INPUT:
        raise _Wrong(f"input.{sorted(extra)[0]}", "unknown field")
    if "messages" not in given:
        raise _Wrong("input.messages", "missing")
    messages = _check_messages(given["messages"], "input.messages")
    if messages[-1]["role"] not in ("user", "tool"):
        raise _Wrong(f"input.messages[{len(messages) - 1}].role", "the last one must be the user's")
    _check_tools(given, "input.")
    for name in _OUTPUTS:
        output = _check_messages(row[name], name)
        if len(output) != 1 or output[0]["role"] != "assistant":
            raise _Wrong(name, "expected one message, of role assistant")
        _check_answer(output, name, len(messages))
    first, second = (shared.parse(row[name], name).messages[0] for name in _OUTPUTS)
    if first == second:
        raise _Wrong("non_preferred_output", "equal to preferred_output, so neither is preferred")


def _check_messages(value: Any, field: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list) or not value:
        raise _Wrong(field, f"expected a list of messages, not {_shown(value)}")
    for number, message in enumerate(value):
        _check_message(message, f"{field}[{number}]")
    with _as_trained(field):  # calls and their answers, arguments, texts that cannot be encoded
        shared.parse(value, field)
    return value


@contextmanager
def _as_trained(field: str) -> Iterator[None]:
    """Turn an error of the parser that training shares, which names its field, into _Wrong."""
    try:
        yield
    except RowError as error:
        place, _, why = str(error).partition(": ")
        raise _Wrong(place if place.startswith(field) else field, why or str(error)) from None


def _check_message(message: Any, field: str) -> None:
    if not isinstance(message, dict):
        raise _Wrong(field, f"expected an object with role and content, not {_shown(message)}")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise _Wrong(f"{field}.role", f"{_shown(role)} is none of {', '.join(_ROLES)}")
    for name in message.keys() - _MESSAGE:
        if message[name] is not None:
            raise _Wrong(f"{field}.{name}", "unknown field; only text and tool calls are learnt")
    calls = message.get("tool_calls")
    if calls is not None:
        _check_calls(calls, role, f"{field}.tool_calls")
    _check_content(content, f"{field}.content", optional=bool(calls))
    if (weight := message.get("weight")) is not None and (
        role != "assistant" or type(weight) is not int or weight not in (0, 1)
    ):
        raise _Wrong(f"{field}.weight", f"{_shown(weight)}; 0 or 1, of an assistant's message")
    for name in ("name", "tool_call_id", "reasoning_content"):
        if message.get(name) is not None and not isinstance(message[name], str):
            raise _Wrong(f"{field}.{name}", f"expected text, not {_shown(message[name])}")
    if role == "tool" and not message.get("tool_call_id"):
        raise _Wrong(f"{field}.tool_call_id", "missing; it names the call that is answered")


def _check_content(content: Any, field: str, *, optional: bool) -> None:
    if isinstance(content, str):
        return
    if content is None:
        if optional:
            return
        raise _Wrong(field, "missing")
    if not isinstance(content, list) or not content:
        raise _Wrong(field, f"expected text, not {_shown(content)}")
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise _Wrong(f"{field}[{number}]", "only parts of type text are learnt")


def _check_calls(calls: Any, role: str, field: str) -> None:
    if role != "assistant" or not isinstance(calls, list) or not calls:
        raise _Wrong(field, "expected a list of calls, in a message of the assistant")
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _Wrong(f"{field}[{number}].function", "expected an object with name, arguments")
        if not isinstance(function.get("arguments"), str):
            raise _Wrong(f"{field}[{number}].function.arguments", "expected JSON as text")
        _check_arguments(function["arguments"], f"{field}[{number}].function.arguments")


def _check_arguments(text: str, field: str) -> None:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise _Wrong(field, f"not JSON ({str(error)[:120]})") from None
    if not isinstance(arguments, dict):
        raise _Wrong(field, f"expected an object as JSON text, not {_shown(arguments)}")
    _check_depth(text, arguments, field)


def _check_tools(row: Mapping[str, Any], prefix: str = "") -> None:
    tools = row.get("tools")
    if tools is not None:
        if not isinstance(tools, list):
            raise _Wrong(f"{prefix}tools", f"expected a list of tools, not {_shown(tools)}")
        for number, tool in enumerate(tools):
            function = tool.get("function") if isinstance(tool, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise _Wrong(f"{prefix}tools[{number}].function", "expected an object with a name")
        with _as_trained(f"{prefix}tools"):
            shared.tools(tools, f"{prefix}tools")
    parallel = row.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise _Wrong(f"{prefix}parallel_tool_calls", f"expected true or false, not {parallel!r}")


def _columns(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name)[:32] for name in sorted(row)[:8]) or "(none)"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"
