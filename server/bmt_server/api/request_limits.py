"""Limits on the fields of a generation request: refused fields, and bounds on the others.

vLLM lets a request run templates, fetch URLs, pass tensors, choose the salt of the prefix cache and
ask for thousands of choices at once. Each of these has been a vulnerability: CVE-2025-62426 and
CVE-2026-115911 (chat_template), CVE-2026-24779 (media URLs), CVE-2026-56340 (prompt_embeds),
CVE-2026-105756 (cache_salt), CVE-2026-34756 (n).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import inf
from typing import Any

from bmt_server.errors import BadRequest

_STORE = "this server keeps no responses; send the whole conversation as `input`"
#: Refused field -> reason. Refused at any depth, except in objects whose names the user chooses.
REFUSED_FIELDS: Mapping[str, str] = {
    "chat_template": "the server's own template is used; send messages",
    "prompt_embeds": "prompts are text or token ids",
    "cache_salt": "the server sets it by tenant",
    "kv_transfer_params": "the server decides where keys and values are stored",
    "ec_transfer_params": "the server decides where encodings are stored",
    "media_io_kwargs": "this server takes text only",
    "mm_processor_kwargs": "this server takes text only",
    "mm_payload": "this server takes text only",
    "previous_response_id": _STORE,
    "conversation": _STORE,
    "store": _STORE,
    "background": "a response ends with its connection; use `stream`",
}
#: Values of refused fields that ask for nothing.
_UNSET = (None, False)
#: Field -> value, set in each body whose route has the field: vLLM's default differs.
PINNED_FIELDS: Mapping[str, Any] = {"store": False, "background": False}
#: Fields whose null is their default, as in OpenAI's API: vLLM's response repeats their value, and
#: cannot hold a null, so an answer that was computed would be a 500.
NULL_IS_DEFAULT = frozenset({"truncation"})
# Objects whose names the user chooses: JSON schemas, and arguments of tools.
_USERS_OBJECTS = frozenset(
    ("parameters", "input_schema", "schema", "json", "json_schema", "arguments", "metadata")
)
#: Field -> largest number; the smallest is 0, because vLLM reads -1 log-probabilities as all.
MAX_VALUES: Mapping[str, int] = {
    "n": 64,
    "best_of": 64,
    "logprobs": 20,
    "top_logprobs": 20,
    "prompt_logprobs": 20,
    "priority": 2**31 - 1,
}
#: Lower is earlier, and the default is 0: only a key of scope `priority` may step ahead of others.
LEAST_PRIORITY = -(2**31)
#: Field -> largest number of entries.
MAX_ENTRIES: Mapping[str, int] = {
    "stop": 16,
    "stop_sequences": 16,
    "stop_token_ids": 128,
    "bad_words": 128,
    "allowed_token_ids": 4096,
    "logit_bias": 1024,
    "messages": 4096,
    "tools": 128,
    "documents": 1024,
    "logprob_token_ids": 1024,
    "choice": 1024,
}
#: Field of `structured_outputs` -> largest number of characters: each is compiled to a grammar.
MAX_GRAMMAR_CHARACTERS: Mapping[str, int] = {
    "regex": 4096,
    "grammar": 16_384,
    "structural_tag": 65_536,
    "json": 65_536,
}
MAX_PROMPTS = 64
#: Context of a model that states none.
MAX_CONTEXT = 1 << 20
# Fields of a message.
_PLAIN = frozenset(("role", "content", "type", "text", "name"))
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
#: Items of a conversation in `input`.
MAX_INPUT_ITEMS = 1024
MAX_STOP_CHARACTERS = 1024
#: Fields that vLLM's beam search leaves out without a word, and their values that ask for nothing.
IGNORED_BY_BEAMS = (
    *("structured_outputs", "response_format", "tool_choice", "allowed_token_ids", "bad_words"),
    *("logit_bias", "min_tokens", "stop", "stop_token_ids", "logits_processors"),
)
_ASK_NOTHING: tuple[Any, ...] = (None, 0, [], {}, "", "none", "auto", {"type": "text"})
_FALSE = (None, False, 0, "false", "False", "0", "off", "no")
#: Types of `tool_choice` that vLLM enforces; it answers others by whatever the model writes.
_ENFORCED_CHOICES = frozenset(("function", "custom", "auto", "any", "tool", "none"))
# Types and keys of content other than text.
_MEDIA = frozenset(
    ("image_url", "image_embeds", "input_image", "audio_url", "audio_embeds", "input_audio")
    + ("video_url", "input_file")
)
# Types of such content if the object has one of _SOURCES: arguments of tools have types too.
_MEDIA_WITH_SOURCE = frozenset(("image", "document", "file"))
_SOURCES = ("source", "file")


def check_body(body: Mapping[str, Any], *, may_step_ahead: bool = False) -> None:
    """Raise BadRequest for the first field that is refused, out of bounds or without effect.

    The message names the field, the value and the bound. vLLM itself refuses fields of a wrong
    type. may_step_ahead: the key may send a `priority` below 0.
    """
    for field, maximum in MAX_VALUES.items():
        number = _number(body.get(field))
        least = LEAST_PRIORITY if field == "priority" and may_step_ahead else 0
        if number is not None and not least <= number <= maximum:
            bound = f"{least} to {maximum}"
            if field == "priority" and not may_step_ahead:
                bound += ", and less with a key of scope `priority`"
            raise _out_of_bounds(field, f"{number:g}", bound)
    grammar = body.get("structured_outputs")
    grammar = grammar if isinstance(grammar, dict) else {}
    for field, maximum in MAX_GRAMMAR_CHARACTERS.items():
        text = grammar.get(field)
        if isinstance(text, str) and len(text) > maximum:
            raise _out_of_bounds(field, f"{len(text)} characters", f"at most {maximum}")
    for field, maximum in MAX_ENTRIES.items():
        value = body.get(field, grammar.get(field))
        if isinstance(value, (list, dict)) and len(value) > maximum:
            raise _out_of_bounds(field, f"{len(value)} entries", f"at most {maximum}")
    for field in ("prompt", "input"):
        _check_prompts(field, body.get(field))
    for field in ("stop", "stop_sequences"):
        _check_stops(field, body.get(field))
    _check_effects(body)
    for item in _objects(body):
        _check_object(item)


def pin_fields(body: dict[str, Any], fields: Collection[str]) -> None:
    """Set the fields of PINNED_FIELDS that a route has, and drop nulls that are defaults.

    fields: all fields of the route.
    """
    body.update((field, value) for field, value in PINNED_FIELDS.items() if field in fields)
    for field in NULL_IS_DEFAULT & body.keys():
        if body[field] is None:
            del body[field]


def count_sequences(body: Mapping[str, Any]) -> int:
    """Sequences that the engine runs for a checked request: prompts times choices."""
    prompts = [body[field] for field in ("prompt", "input") if _is_prompt_list(body.get(field))]
    most = max(map(len, prompts), default=1)
    return most * max(1, int(_number(body.get("n")) or 1))


def most_tokens(
    body: Mapping[str, Any],
    sequences: int,
    context: int | None,
    *,
    generates: bool,
    fields: Collection[str] | None = None,
) -> int:
    """The most tokens that a checked request may take, prompts and completions together.

    context: of the model. generates: False for embeddings. fields: all fields of the route; None:
    unknown. A prompt has no more tokens than it has characters, about, and may have the text of
    any field: `system`, `tools`. Without `max_tokens` a completion may fill the context. Beam
    search runs the model once for each beam and token, each time on all tokens before.
    """
    # Of several such fields, which one counts is the route's affair.
    known = [f for f in _MAX_TOKENS if fields is None or f in fields]
    given = [n for f in known if (n := _number(body.get(f))) is not None]
    context = context or MAX_CONTEXT
    completion = max(0, min(context, max(given, default=context))) if generates else 0
    prompts = sum(_characters(value) for field, value in body.items() if field != "model")
    if generates and body.get("use_beam_search") not in _FALSE:
        return int(sequences * max(1, completion) * min(context, prompts + completion))
    return int(min(sequences * context, prompts + sequences * completion))


def _characters(value: Any) -> int:
    """Characters of all text in a value, names of tools' parameters too, and one for each number.

    Names of the API's own fields are no text of a prompt.
    """
    pending, count = [value], 0
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            count += len(item.encode(errors="replace"))
        elif isinstance(item, (list, dict)):
            count += len(item)
            if isinstance(item, dict):
                count += sum(len(key) for key in item if key not in _PLAIN)
            pending += [
                v
                for v in (item.values() if isinstance(item, dict) else item)
                if isinstance(v, (str, list, dict))
            ]
    return count


def _is_prompt_list(prompt: Any) -> bool:
    """True for a list of prompts; a list of token ids or of messages is one prompt."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))


def _number(value: Any) -> float | None:
    """The number that vLLM would read, from digits in a string too; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:
        return inf


def _check_effects(body: Mapping[str, Any]) -> None:
    """Raise BadRequest for a field that vLLM would take and leave without effect."""
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(kind, str) and kind not in _ENFORCED_CHOICES:
        raise BadRequest(
            f"`tool_choice` of type {kind[:100]!r} is not enforced by this server; name a "
            'function, or send "required" with the tools that may be called',
            code="field_refused",
            param="tool_choice",
        )
    if body.get("use_beam_search") in _FALSE:
        return
    for field in IGNORED_BY_BEAMS:
        if body.get(field) not in _ASK_NOTHING:
            raise BadRequest(
                f"`{field}` has no effect on beams; leave out it or `use_beam_search`",
                code="field_refused",
                param=field,
            )


def _check_prompts(field: str, prompt: Any) -> None:
    if _is_prompt_list(prompt) and len(prompt) > MAX_PROMPTS:
        raise _out_of_bounds(field, f"{len(prompt)} prompts", f"at most {MAX_PROMPTS}")
    if isinstance(prompt, list) and len(prompt) > MAX_INPUT_ITEMS and isinstance(prompt[0], dict):
        raise _out_of_bounds(field, f"{len(prompt)} entries", f"at most {MAX_INPUT_ITEMS}")


def _check_stops(field: str, stops: Any) -> None:
    for stop in stops if isinstance(stops, list) else [stops]:
        if isinstance(stop, str) and len(stop) > MAX_STOP_CHARACTERS:
            raise _out_of_bounds(field, f"{len(stop)} characters", f"at most {MAX_STOP_CHARACTERS}")


def _objects(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All objects of a body, at any depth, except those whose names the user chooses."""
    pending: list[Any] = [body]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending += [v for v in item if isinstance(v, (list, dict))]
        else:
            yield item
            # A tool's call has its arguments in `input`, which elsewhere is the prompt.
            called = item is not body and item.get("type") == "tool_use"
            users = {*_USERS_OBJECTS, "input"} if called else _USERS_OBJECTS
            pending += [
                v for k, v in item.items() if isinstance(v, (list, dict)) and k not in users
            ]


def _check_object(item: Mapping[str, Any]) -> None:
    """Raise BadRequest for a field that is refused, or content other than text."""
    for field in REFUSED_FIELDS.keys() & item.keys():
        if not any(item[field] is unset for unset in _UNSET):
            raise BadRequest(
                f"`{field}` is not accepted: {REFUSED_FIELDS[field]}",
                code="field_refused",
                param=field,
            )
    kind = item.get("type")
    media = [key for key in _MEDIA & item.keys() if isinstance(item[key], (dict, str))]
    if isinstance(kind, str) and (
        kind in _MEDIA or (kind in _MEDIA_WITH_SOURCE and any(s in item for s in _SOURCES))
    ):
        media.append(kind)
    if media:
        raise BadRequest(
            f"content of type {media[0]!r} is not accepted: this server takes text only",
            code="field_refused",
            param="messages",
        )


def _out_of_bounds(field: str, value: str, bound: str) -> BadRequest:
    return BadRequest(
        f"`{field}` is {value}; allowed: {bound}", code="field_out_of_bounds", param=field
    )
