"""Conversion of rows of data sets, in the forms that are in use, into examples.

The first form whose columns a row has is taken; a column that is null counts as absent::

    input_ids [labels | completion_mask | assistant_masks]     tokens
    messages | conversations [tools] [system]                  a chat
    chosen, rejected [prompt]                                  a preference pair: chosen is learnt
    prompt, completion [demonstration] [label]                 texts, or chats of several turns
    instruction, output [input] [system] [history]             Alpaca
    text                                                       text
    prompt [answer | solution | ground_truth]                  a prompt without a completion
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

from trl.data_utils import maybe_convert_to_chatml, maybe_extract_prompt

from bmt_trainer.data.chats import messages
from bmt_trainer.data.chats.messages import Chat, text
from bmt_trainer.data.examples import Answer, Example, Message, chat, with_system
from bmt_trainer.data.rows import tokens
from bmt_trainer.data.rows.text_formats import parse_json
from bmt_trainer.errors import DataError

_CHATS = ("messages", "conversations")
# Columns of a row without a completion that a grader may compare with.
_ANSWERS = ("answer", "solution", "ground_truth")
# Not text: such a row is about more than its messages.
_MEDIA = ("images", "image", "audios", "audio", "videos", "video")
_RESERVED = {"tools", "messages", "conversation", "chat_template", "tokenize"}
_RESERVED |= {"add_generation_prompt", "continue_final_message"}
_FORMS = (
    "messages, conversations, prompt and completion, chosen and rejected, instruction and output, "
    "text, input_ids, or prompt alone"
)


#: The columns that are read of a row.
Form = Literal["auto", "text", "pair", "label"]


def example_of(row: Any, location: str, form: Form = "auto") -> Example:
    """The example of one row.

    location: of the row, for error messages; form: text takes `prompt` and `completion` as raw
    text, whatever the model's chat template; pair takes `chosen` and `rejected`, whatever other
    columns there are, as an answer and a rejected one; label takes those too, or `prompt`,
    `completion` and `label`. Raises DataError.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{location}: expected an object with columns, not {type(row).__name__}")
    given = {key: value for key, value in row.items() if value is not None}
    for key in _MEDIA:
        value = given.get(key)
        if value and isinstance(value, bytes | Mapping | Sequence) and not isinstance(value, str):
            raise DataError(f"{location}: {key}: cannot be kept, only text is learnt")
    example = _read(given, location, form)
    return replace(example, columns=dict(row), location=location)


def _read(row: Mapping[str, Any], location: str, form: str) -> Example:
    if form == "text":
        return _raw(row, location)
    if form == "pair":
        return _pair(row, location)
    if form == "label":
        return _labeled(row, location)
    if "input_ids" in row:
        return tokens.example_of(row, location)
    if any(key in row for key in _CHATS):
        return _chat(row, location)
    if "chosen" in row and "rejected" in row:
        return _preference(row, location)
    if "prompt" in row and "completion" in row:
        # TRL's form for KTO, whose answers are wanted or not. 0 may be a class of other data.
        if row.get("label") is False or str(row.get("label")).lower() == "false":
            raise DataError(
                f"{location}: label: false, so the completion is an answer that is not wanted, and "
                "would be learnt; remove such rows, or train by kto"
            )
        return _completion(row, location)
    if "instruction" in row and "output" in row:
        return _alpaca(row, location)
    if "text" in row:
        return _text(row, location)
    if "prompt" in row:
        return _prompt(row, location)
    hint = ""
    if {"question", "answer"} <= row.keys():
        hint = "; name the columns: ?prompt=question&completion=answer"
    raise DataError(
        f"{location}: columns {', '.join(map(str, row)) or '(none)'} are no known form; expected "
        f"{_FORMS}{hint}"
    )


def _raw(row: Mapping[str, Any], location: str) -> Example:
    """Text exactly as it is: `prompt` and `completion`, or `text`."""
    if "prompt" in row and "completion" in row:
        prompt = text(row["prompt"], f"{location}: prompt")
        completion = _answer(row["completion"], f"{location}: completion")
        return Example(prompt, completion, _demonstration(row, location))
    if "text" in row:
        return _text(row, location)
    if "prompt" in row:
        return Example(text(row["prompt"], f"{location}: prompt"), _reference(row, location))
    raise DataError(f"{location}: format=text takes prompt and completion, or text")


def _text(row: Mapping[str, Any], location: str) -> Example:
    return Example("", _answer(row["text"], f"{location}: text"))


def _chat(row: Mapping[str, Any], location: str) -> Example:
    key = next(key for key in _CHATS if key in row)
    parsed = _parse(row, key, location)
    if parsed.messages[-1]["role"] != "assistant":
        raise DataError(
            f"{location}: {key}: the last turn is of the {parsed.messages[-1]['role']}; expected a "
            "chat that ends with the assistant"
        )
    return _of_chat(parsed, row, location, key)


def _pair(row: Mapping[str, Any], location: str) -> Example:
    """Two answers to one prompt, each of one turn."""
    for key in ("chosen", "rejected"):
        if key not in row:
            raise DataError(
                f"{location}: {key}: missing; a preference pair has chosen and rejected, and a "
                "prompt unless both chats hold it"
            )
    chosen = _preference(row, location)
    swapped = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    other = _preference(swapped, location, "rejected")
    if chosen.prompt != other.prompt:
        raise DataError(
            f"{location}: rejected: answers other turns than chosen; a pair is two answers to one "
            "prompt, each of one turn"
        )
    if (chosen.answer, chosen.reply) == (other.answer, other.reply):
        raise DataError(f"{location}: chosen: equal to rejected, so neither is preferred")
    return replace(chosen, learnt=(), rejected=Answer(other.answer, other.reply))


def _labeled(row: Mapping[str, Any], location: str) -> Example:
    """An answer with a label, or a preference pair, which is two of them."""
    paired = [key for key in ("chosen", "rejected") if key in row]
    if paired and ("label" in row or "completion" in row):
        raise DataError(
            f"{location}: {paired[0]}: the row is an answer with a label and a preference pair; "
            "keep the columns of one"
        )
    if paired:
        return _pair(row, location)
    for key in ("prompt", "completion", "label"):
        if key not in row:
            raise DataError(
                f"{location}: {key}: missing; kto learns from prompt, completion and label, or "
                "from chosen and rejected"
            )
    example = _completion(row, location)
    return replace(example, learnt=(), wanted=_label(row["label"], location))


def _label(value: Any, location: str) -> bool:
    """A label as JSON, CSV and tables of numbers write it, in columns with gaps as 1.0 and 0.0."""
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    if isinstance(value, bool | int | float | str) and str(value).strip().lower() in known:
        return known[str(value).strip().lower()]
    raise DataError(
        f"{location}: label: {messages.shown(value)} is neither true nor false; true is an answer "
        "that is wanted"
    )


def _preference(row: Mapping[str, Any], location: str, field: str = "chosen") -> Example:
    """The answer `chosen` of a pair, whose prompt may stand in both of its chats.

    field: the column's name in error messages.
    """
    keys = [key for key in ("prompt", "chosen", "rejected") if key in row]
    pair = {key: row[key] for key in keys}
    for key in ("chosen", "rejected"):
        if not isinstance(pair[key], str | list) or not pair[key]:
            raise DataError(f"{location}: {key}: expected text or a list of messages")
    if pair["chosen"] == pair["rejected"]:
        raise DataError(f"{location}: chosen: equal to rejected, so neither is preferred")
    if "prompt" not in pair and isinstance(pair["chosen"], str):
        raise DataError(f"{location}: prompt: missing; chosen and rejected as text need one")
    if isinstance(pair["chosen"], list) and isinstance(pair["rejected"], list):
        pair = _without_prompt(maybe_extract_prompt(deepcopy(pair)))
        # TRL finds no prompt in chats that hold the answers alone, after a prompt as text.
        pair["prompt"] = pair["prompt"] or row.get("prompt")
    if not pair["prompt"]:
        raise DataError(f"{location}: {field}: chosen and rejected have no prompt in common")
    if not pair["chosen"]:
        raise DataError(f"{location}: {field}: ends with the prompt, without an answer")
    columns = {key: value for key, value in row.items() if key not in pair}
    columns |= {"prompt": pair["prompt"], "completion": pair["chosen"]}
    example = _completion(columns, location, field)
    asked = row.get("prompt")
    if isinstance(asked, str) and isinstance(row["chosen"], list):
        turns = [str(m["content"]).strip() for m in example.messages if m["role"] == "user"]
        if asked.strip() not in turns:
            raise DataError(
                f"{location}: prompt: is no turn of the user in chosen and rejected, which hold "
                "another prompt; keep one"
            )
    return example


def _without_prompt(pair: dict[str, Any]) -> dict[str, Any]:
    """A pair whose chats may repeat the chat `prompt` at their beginning, without that."""
    prompt = pair["prompt"]
    if not isinstance(prompt, list) or not prompt:
        return pair
    repeated = {
        key: pair[key][len(prompt) :]
        for key in ("chosen", "rejected")
        if _given(pair[key][: len(prompt)]) == _given(prompt)
    }
    return {**pair, **repeated}


def _given(turns: Sequence[Any]) -> list[Any]:
    """Messages without their empty fields, which tables fill up with null."""
    return [
        {k: v for k, v in m.items() if v is not None} if isinstance(m, Mapping) else m
        for m in turns
    ]


def _completion(row: Mapping[str, Any], location: str, field: str = "completion") -> Example:
    """`prompt` and `completion`, each a text or a chat. field: the completion's column."""
    demonstration = _demonstration(row, location)
    both = isinstance(row["prompt"], str) and isinstance(row["completion"], str)
    before = _turns(row, "prompt", location, "user")
    _check_prompt(before.messages, location)
    if isinstance(row["completion"], str):
        answer = _answer(row["completion"], f"{location}: {field}")
        after = Chat(({"role": "assistant", "content": answer},), (True,))
    else:
        after = _parse({field: row["completion"]}, field, location)
    if (last := after.messages[-1]["role"]) != "assistant":
        raise DataError(
            f"{location}: {field}: the last turn is of the {last}; a completion ends with the "
            "assistant's turn"
        )
    asked, first = before.messages[-1]["role"], after.messages[0]["role"]
    # The prompt again, or another one: two turns in a row that no conversation has.
    if asked != "system" and first != "assistant":
        raise DataError(
            f"{location}: {field}: begins with a turn of the {first}, after one of the {asked} at "
            "the prompt's end; keep the turns before the answer in one of the two"
        )
    parsed = Chat(
        (*before.messages, *after.messages), (*[False] * len(before.messages), *after.learnable)
    )
    example = _of_chat(parsed, row, location, field)
    return replace(example, demonstration=demonstration, plain=_plain(example, both))


def _alpaca(row: Mapping[str, Any], location: str) -> Example:
    """Alpaca's columns: the user's turn is the instruction, and the input on the next line."""
    instruction = text(row["instruction"], f"{location}: instruction")
    given = text(row.get("input", ""), f"{location}: input")
    history = row.get("history") or []
    turns: list[Message] = []
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise DataError(f"{location}: history: expected a list of [question, answer]")
    for number, pair in enumerate(history):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise DataError(f"{location}: history[{number}]: expected [question, answer]")
        for role, value in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": text(value, f"{location}: history[{number}]")})
    asked = "\n".join(part for part in (instruction, given) if part)
    turns.append({"role": "user", "content": asked})
    answer = _answer(row["output"], f"{location}: output")
    turns.append({"role": "assistant", "content": answer})
    parsed = Chat(tuple(turns), tuple(m["role"] == "assistant" for m in turns))
    example = _of_chat(parsed, row, location, "output")
    return replace(example, plain=_plain(example, True))


def _prompt(row: Mapping[str, Any], location: str) -> Example:
    """A prompt without a completion, and perhaps the text that a grader compares with."""
    turns = _turns(row, "prompt", location, "user").messages
    _check_prompt(turns, location)
    exact = isinstance(row["prompt"], str)
    example = Example(turns, _reference(row, location), _demonstration(row, location))
    example = _with_options(example, row, location)
    return replace(example, plain=_plain(example, exact))


def _reference(row: Mapping[str, Any], location: str) -> str:
    for key in _ANSWERS:
        value = row.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            return text(value, f"{location}: {key}")
    return ""


def _of_chat(parsed: Chat, row: Mapping[str, Any], location: str, field: str) -> Example:
    """The last turn that may be learnt as the answer, after everything before it."""
    chosen = [at for at, learnt in enumerate(parsed.learnable) if learnt]
    if not chosen:
        raise DataError(
            f"{location}: {field}: every assistant turn has weight 0; nothing is learnt"
        )
    last = chosen[-1]
    if not last:
        raise DataError(f"{location}: {field}: the assistant answers no turn; put one before it")
    reply = parsed.messages[last]
    if not reply["content"].strip() and not reply.get("tool_calls"):
        raise DataError(
            f"{location}: {field}: the answer (turn {last + 1}) is empty, so the model would learn "
            "to say nothing; give it text or tool_calls, weight 0, or remove the row"
        )
    more = reply.keys() - {"role", "content"}
    example = Example(
        parsed.messages[:last],
        reply["content"],
        _demonstration(row, location),
        reply=reply if more else None,
        learnt=tuple(chosen[:-1]),
        plain="no",
    )
    return _with_options(example, row, location)


def _with_options(example: Example, row: Mapping[str, Any], location: str) -> Example:
    """`example` with the row's `system`, `tools` and `chat_template_kwargs`."""
    if system := row.get("system"):
        first = example.messages[0]
        given = text(system, f"{location}: system")
        if first["role"] not in ("system", "developer"):
            example = with_system(example, given)
        elif first["content"] != given:
            raise DataError(
                f"{location}: system: differs from the chat's own {first['role']} message; keep one"
            )
    kwargs = row.get("chat_template_kwargs") or {}
    if isinstance(kwargs, str):
        kwargs = parse_json(kwargs, f"{location}: chat_template_kwargs")
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise DataError(f"{location}: chat_template_kwargs: expected an object")
    if taken := sorted(_RESERVED & kwargs.keys()):
        raise DataError(f"{location}: chat_template_kwargs: {taken[0]} is not the row's to set")
    given_tools = row.get("tools", row.get("functions"))
    return replace(
        example,
        tools=messages.tools(given_tools, f"{location}: tools"),
        template_kwargs=messages.encodable(dict(kwargs), f"{location}: chat_template_kwargs"),
    )


def _plain(example: Example, texts: bool) -> Literal["exact", "no"]:
    """The way in which a model without a chat template reads a row: texts as they are, no chats."""
    return "exact" if texts and len(example.prompt) == 1 and not example.tools else "no"


def _turns(row: Mapping[str, Any], key: str, location: str, role: str) -> Chat:
    """A column that is a chat, or the text of one turn of `role`."""
    if isinstance(row[key], str):
        return Chat(chat(text(row[key], f"{location}: {key}")), (False,))
    return _parse(row, key, location)


def _parse(row: Mapping[str, Any], key: str, location: str) -> Chat:
    """The chat of a column, in OpenAI's form or in ShareGPT's (from and value)."""
    value = row[key]
    if isinstance(value, str):
        value = parse_json(value, f"{location}: {key}")
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{location}: {key}: expected "
            f"{'' if key in _CHATS else 'text or '}a list of messages, not {messages.shown(value)}"
        )
    listed = list(deepcopy(value))
    speakers = any(isinstance(m, dict) and "from" in m for m in listed)
    # TRL renames the keys of a chat in place, and leaves its roles as they are.
    renamed = maybe_convert_to_chatml({"messages": listed})["messages"]
    sharegpt = speakers or key == "conversations"
    return messages.parse(renamed, f"{location}: {key}", conversations=sharegpt, speakers=speakers)


def _check_prompt(turns: Sequence[Message], location: str) -> None:
    last = turns[-1]["role"]
    if last == "assistant":
        raise DataError(
            f"{location}: prompt: ends with the assistant's turn, which the answer would have to "
            "continue; put that turn into the completion"
        )


def _answer(value: Any, where: str) -> str:
    answer = text(value, where)
    if not answer.strip():
        raise DataError(
            f"{where}: empty, so the model would learn to say nothing; remove the row or fill it"
        )
    return answer


def _demonstration(row: Mapping[str, Any], location: str) -> str | None:
    value = row.get("demonstration")
    return None if value is None else text(value, f"{location}: demonstration")
