"""Messages of data rows: the forms in use, checked and brought to one form.

That form is OpenAI's: `role` and `content` as text, `tool_calls` with arguments as objects,
`tool_call_id`, `name`, and `reasoning_content`. A field that changes the meaning of a message and
is none of these raises RowError, which names the row and the field.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from bmt_core.errors import RowError
from bmt_core.fine_tuning.json_text import parse_json

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
#: Roles of ShareGPT's `conversations`.
SPEAKERS = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
_REASONING = ("reasoning_content", "thinking", "reasoning")
_WEIGHTS = ("weight", "train", "training", "loss")
_FIELDS = {"role", "content", "tool_calls", "tool_call_id", "name", "function_call"}
_FIELDS |= {*_REASONING, *_WEIGHTS}
# Fields that change what a message says, or what of it is learnt, and that no chat template takes.
_REFUSED = {
    "refusal": "write it as content",
    "prefix": "put the beginning of an answer into the answer",
    "audio": "only text is learnt",
    "images": "only text is learnt",
    "image": "only text is learnt",
    "videos": "only text is learnt",
    "reasoning_details": "write it as reasoning_content",
    "thoughts": "write it as reasoning_content",
    "train_detail": "weights are per turn; use weight",
    "training_detail": "weights are per turn; use weight",
    "tools": "write them in the row's column tools",
    "functions": 'write them in the row\'s column tools, each as {"type": "function", …}',
    "tool_responses": "write one turn of role tool for each call",
}


@dataclass(frozen=True)
class Chat:
    """Messages, and for each if it is an assistant turn that the row lets be learnt."""

    messages: tuple[Message, ...]
    learnable: tuple[bool, ...]


def parse(value: Any, where: str, *, conversations: bool = False, speakers: bool = False) -> Chat:
    """The chat of a list of messages.

    where: row and field, for error messages; conversations: roles are ShareGPT's; speakers: they
    were written as `from`. Raises RowError.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowError(f"{where}: expected a list of messages, not {shown(value)}")
    messages: list[Message] = []
    learnable: list[bool] = []
    places: list[int] = []
    calls = _Calls(strict=not conversations)
    for number, given in enumerate(value):
        at = f"{where}[{number}]"
        if not isinstance(given, Mapping):
            raise RowError(f"{at}: expected an object with role and content, not {shown(given)}")
        fields = {key: field for key, field in given.items() if field is not None}
        _check_fields(fields, at)
        role = _role(fields.get("role"), at, conversations, "from" if speakers else "role")
        message = _message(fields, role, at)
        learnable.append(_weight(fields, role, at) and SPEAKERS.get(role) == "assistant")
        messages.append(calls.linked(message, at))
        places.append(calls.place)
    return Chat(tuple(_in_order_of_calls(messages, places)), tuple(learnable))


def text(value: Any, where: str) -> str:
    """`value`, which must be text that can be encoded. Raises RowError."""
    if not isinstance(value, str):
        raise RowError(f"{where}: expected text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"{where}: character {error.start + 1} is half of a surrogate pair "
            f"(\\u{ord(value[error.start]):04x}), which is no text; repair or remove it"
        ) from None
    return value


def tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Tools of a row, in OpenAI's form, from a list or its JSON text. Raises RowError."""
    if value is None or value == "":
        return ()
    value = parse_json(value, where) if isinstance(value, str) else value
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowError(f"{where}: expected a list of tools, not {shown(value)}")
    return tuple(_tool(tool, f"{where}[{number}]") for number, tool in enumerate(value))


def encodable(value: Any, where: str) -> Any:
    """`value`, whose JSON must be text that can be encoded. Raises RowError."""
    try:
        text(json.dumps(value, ensure_ascii=False, allow_nan=False), where)
    except (TypeError, ValueError) as error:
        raise RowError(f"{where}: not JSON ({error})") from None
    return value


def _check_fields(fields: Mapping[str, Any], at: str) -> None:
    for key, value in fields.items():
        if key in _FIELDS or (isinstance(value, Sequence | Mapping) and not value):
            continue
        if key in _REFUSED and value:
            raise RowError(f"{at}.{key}: cannot be kept; {_REFUSED[key]}")
        if key in _REFUSED:
            continue
        # Whatever its value: of a misspelled weight, 0 and false are those that count.
        if meant := difflib.get_close_matches(str(key).lower(), sorted(_FIELDS), 1, 0.8):
            raise RowError(f"{at}.{key}: unknown field; {meant[0]} is meant, or rename it")


def _role(role: Any, at: str, conversations: bool, field: str) -> str:
    known = SPEAKERS if conversations else {**{r: r for r in ROLES}, "function": "tool"}
    if isinstance(role, str) and role in known:
        return role
    hint = ""
    if isinstance(role, str) and role in SPEAKERS:
        hint = f"; write {SPEAKERS[role]}, or name the column conversations"
    listed = ", ".join(SPEAKERS if conversations else ROLES)
    if isinstance(role, str) and role.strip().lower() in known:
        hint = f"; write {role.strip().lower()}"
    raise RowError(f"{at}.{field}: {shown(role)} is none of {listed}{hint}")


def _message(fields: Mapping[str, Any], role: str, at: str) -> dict[str, Any]:
    """The message in one form; roles of `conversations` and the legacy `function` are mapped."""
    if role == "function_call":
        value = parse_json(text(fields.get("content"), f"{at}.value"), f"{at}.value")
        listed = value if isinstance(value, list) else [value]
        fields = {"role": "assistant", "content": "", "tool_calls": listed}
    message: dict[str, Any] = {"role": SPEAKERS.get(role, "tool")}
    message["content"] = _content(fields.get("content"), f"{at}.content")
    if "name" in fields:
        message["name"] = text(fields["name"], f"{at}.name")
    if thoughts := _reasoning(fields, at):
        message["reasoning_content"] = thoughts
    if called := _tool_calls(fields, at):
        message["tool_calls"] = called
    if (thoughts or called) and message["role"] != "assistant":
        field = "tool_calls" if called else "reasoning_content"
        raise RowError(f"{at}.{field}: only the assistant has {field}, not {message['role']}")
    if "tool_call_id" in fields:
        if message["role"] != "tool":
            raise RowError(f"{at}.tool_call_id: only a turn of role tool answers a call")
        message["tool_call_id"] = text(fields["tool_call_id"], f"{at}.tool_call_id")
    if message["content"] is None:
        if not called:
            raise RowError(
                f"{at}.content: null or missing, and the turn has no tool_calls; write its text"
            )
        message["content"] = ""  # templates would write None
    return message


def _content(value: Any, at: str) -> str | None:
    """Content as text. Text parts are joined as they are, with nothing between them."""
    if value is None or isinstance(value, str):
        return value if value is None else text(value, at)
    if not isinstance(value, Sequence):
        raise RowError(f"{at}: expected text or a list of text parts, not {shown(value)}")
    parts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise RowError(
                f"{at}[{number}]: a part of type {shown(kind)} cannot be kept, only "
                '{"type": "text", "text": …}; thoughts are reasoning_content'
            )
        parts.append(text(part.get("text"), f"{at}[{number}].text"))
    return "".join(parts)


def _reasoning(fields: Mapping[str, Any], at: str) -> str:
    given = {key: fields[key] for key in _REASONING if fields.get(key) not in (None, "")}
    texts = {text(value, f"{at}.{key}") for key, value in given.items()}
    if len(texts) > 1:
        raise RowError(f"{at}: {' and '.join(given)} differ; keep one")
    return texts.pop() if texts else ""


def _tool_calls(fields: Mapping[str, Any], at: str) -> list[dict[str, Any]]:
    listed = fields.get("tool_calls", [])
    if isinstance(listed, str):
        listed = parse_json(listed, f"{at}.tool_calls")
    if legacy := fields.get("function_call"):
        if listed:
            raise RowError(f"{at}.function_call: given as well as tool_calls; keep one")
        return [_call(legacy, f"{at}.function_call")]
    if not isinstance(listed, Sequence):
        raise RowError(f"{at}.tool_calls: expected a list of calls, not {shown(listed)}")
    return [_call(call, f"{at}.tool_calls[{n}]") for n, call in enumerate(listed)]


def _call(call: Any, at: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(
            f'{at}: expected {{"type": "function", "function": {{"name": …, "arguments": …}}}}'
        )
    if call.get("type") not in (None, "function"):
        raise RowError(f"{at}.type: {shown(call['type'])} cannot be kept, only function")
    where = f"{at}.function.arguments" if "function" in call else f"{at}.arguments"
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(text(arguments, where), where)
    if not isinstance(arguments, Mapping):
        raise RowError(f"{where}: expected an object or its JSON, not {shown(arguments)}")
    named: dict[str, Any] = {
        "name": text(function["name"], f"{at}.name"),
        "arguments": encodable(dict(arguments), where),
    }
    made: dict[str, Any] = {"type": "function", "function": named}
    if call.get("id") is not None:
        made["id"] = text(call["id"], f"{at}.id")
    return made


def _tool(tool: Any, at: str) -> Mapping[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(
            f'{at}: expected {{"type": "function", "function": {{"name": …, "parameters": …}}}}'
        )
    encodable(tool, at)
    if "function" not in tool:
        return {"type": "function", "function": dict(tool)}
    if tool.get("type", "function") != "function":
        raise RowError(f"{at}.type: {shown(tool['type'])} cannot be kept, only function")
    return {"type": "function", **tool}


def _weight(fields: Mapping[str, Any], role: str, at: str) -> bool:
    """True if the row lets the turn be learnt, as it does without a weight."""
    given = {key: fields[key] for key in _WEIGHTS if key in fields}
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(f"{at}.{key}: {shown(value)} is neither 0 nor 1 (false, true)")
        if value and SPEAKERS.get(role) != "assistant":
            raise RowError(f"{at}.{key}: only the assistant's turns are learnt, not {role}'s")
    if len({bool(value) for value in given.values()}) > 1:
        raise RowError(f"{at}: {' and '.join(given)} differ; keep one")
    return all(given.values())


def _in_order_of_calls(messages: Sequence[Message], places: Sequence[int]) -> Iterator[Message]:
    """The messages, with answers to calls in the order of the calls.

    Most templates write no ids, so that an answer is read by its place. places: of the call that
    each tool turn answers.
    """
    placed = zip(messages, places, strict=True)
    for is_tool, group in groupby(placed, key=lambda pair: pair[0]["role"] == "tool"):
        turns = list(group)
        if is_tool:
            turns.sort(key=lambda pair: pair[1])
        yield from (message for message, _ in turns)


class _Calls:
    """Links of tool turns with the calls that they answer.

    strict: a tool turn must answer a call; ShareGPT's may follow a call that is plain text.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._calls: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self._answered = 0
        #: The place, among the calls of its turn, of the call that the last message answered.
        self.place = 0

    def linked(self, message: dict[str, Any], at: str) -> Message:
        """`message`, if it answers a call with the call's id. Raises RowError."""
        if message["role"] != "tool":
            if self._strict and self._answered and self._open:
                waiting = ", ".join(call["function"]["name"] for call in self._open)
                raise RowError(
                    f"{at}.role: follows a turn of which {self._answered} of "
                    f"{self._answered + len(self._open)} calls are answered ({waiting} is not); "
                    "answer each by a turn of role tool"
                )
            self._calls = list(message.get("tool_calls", ()))
            self._open = list(self._calls)
            self._answered = 0
            for call in self._open:
                if sum(call.get("id") == other.get("id") for other in self._open) > 1 and (
                    "id" in call
                ):
                    raise RowError(f"{at}.tool_calls: two calls have the id {call['id']!r}")
            return message
        if not self._open and not self._strict and not self._answered:
            return message
        wanted = message.get("tool_call_id")
        if wanted is None:
            # Calls are answered in their order; OpenAI's older form names the function instead.
            matching = [c for c in self._open if c["function"]["name"] == message.get("name")]
            candidates = matching or self._open
        else:
            candidates = [c for c in self._open if c.get("id") == wanted]
            candidates = candidates or [c for c in self._open if "id" not in c]
        if not candidates:
            ids = ", ".join(str(c.get("id")) for c in self._open) or "none is open"
            field = "tool_call_id" if wanted is not None else "role"
            raise RowError(
                f"{at}.{field}: the turn answers no call of the assistant's turn before it "
                f"({field} {wanted or 'tool'!r}; open calls: {ids})"
            )
        answered = candidates[0]
        self.place = next(at for at, call in enumerate(self._calls) if call is answered)
        self._open = [call for call in self._open if call is not answered]
        self._answered += 1
        return message if "id" not in answered else {**message, "tool_call_id": answered["id"]}


def shown(value: Any) -> str:
    """A value in an error message: short."""
    if value is None:
        return "null"
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{type(value).__name__} {shown[:37]}…"
