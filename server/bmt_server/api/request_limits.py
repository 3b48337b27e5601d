"""Limits on the fields of a generation request: refused fields, and bounds on the others.

vLLM lets a request run templates, fetch URLs, pass tensors, choose the salt of the prefix cache and
ask for thousands of choices at once. Each of these has been a vulnerability: CVE-2025-62426 and
CVE-2026-115911 (chat_template), CVE-2026-24779 (media URLs), CVE-2026-56340 (prompt_embeds),
CVE-2026-105756 (cache_salt), CVE-2026-34756 (n).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from bmt_server.errors import BadRequest
from bmt_server.registry.schemas import DEFAULT_TENANT

#: Refused field -> reason.
REFUSED_FIELDS: Mapping[str, str] = {
    "chat_template": "the server's own template is used; send messages",
    "prompt_embeds": "prompts are text or token ids",
    "cache_salt": "the server sets it by tenant",
    "kv_transfer_params": "the server decides where keys and values are stored",
    "media_io_kwargs": "this server takes text only",
    "mm_processor_kwargs": "this server takes text only",
}
#: Field -> largest number; the smallest is 0, because vLLM reads -1 log-probabilities as all.
MAX_VALUES: Mapping[str, int] = {
    "n": 64,
    "best_of": 64,
    "logprobs": 20,
    "top_logprobs": 20,
    "prompt_logprobs": 20,
}
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
}
MAX_PROMPTS = 64
MAX_STOP_CHARACTERS = 1024
# Types and keys of content other than text.
_MEDIA = frozenset(
    ("image_url", "image_embeds", "input_image", "audio_url", "audio_embeds", "input_audio")
    + ("video_url", "input_file")
)
# Types of such content if the object has one of _SOURCES: arguments of tools have types too.
_MEDIA_WITH_SOURCE = frozenset(("image", "document", "file"))
_SOURCES = ("source", "file")
_SALTED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


def check_body(body: Mapping[str, Any]) -> None:
    """Raise BadRequest for the first field that is refused or out of bounds.

    The message names the field, the value and the bound. vLLM itself refuses fields of a wrong
    type.
    """
    for field, reason in REFUSED_FIELDS.items():
        if body.get(field) is not None:
            raise BadRequest(
                f"`{field}` is not accepted: {reason}", code="field_refused", param=field
            )
    for field, maximum in MAX_VALUES.items():
        number = _number(body.get(field))
        if number is not None and not 0 <= number <= maximum:
            raise _out_of_bounds(field, f"{number:g}", f"0 to {maximum}")
    for field, maximum in MAX_ENTRIES.items():
        value = body.get(field)
        if isinstance(value, (list, dict)) and len(value) > maximum:
            raise _out_of_bounds(field, f"{len(value)} entries", f"at most {maximum}")
    _check_prompts(body.get("prompt", body.get("input")))
    stops = body.get("stop") or body.get("stop_sequences") or ()
    for stop in [stops] if isinstance(stops, str) else stops:
        if isinstance(stop, str) and len(stop) > MAX_STOP_CHARACTERS:
            raise _out_of_bounds(
                "stop", f"{len(stop)} characters", f"at most {MAX_STOP_CHARACTERS}"
            )
    for kind in _media_types(body.get("messages"), body.get("input")):
        raise BadRequest(
            f"content of type {kind!r} is not accepted: this server takes text only",
            code="field_refused",
            param="messages",
        )


def set_cache_salt(body: dict[str, Any], path: str, tenant: str) -> None:
    """Separate the prefix caches of tenants, because response times reveal cache hits.

    Masks are separated by their names, which vLLM hashes; the salt does so for the base model.
    """
    if tenant != DEFAULT_TENANT and path in _SALTED_PATHS:
        body["cache_salt"] = hashlib.sha256(f"tenant:{tenant}".encode()).hexdigest()


def count_sequences(body: Mapping[str, Any]) -> int:
    """Sequences that the engine runs for a checked request: prompts times choices."""
    prompt = body.get("prompt", body.get("input"))
    prompts = len(prompt) if _is_prompt_list(prompt) else 1
    return prompts * max(1, int(_number(body.get("n")) or 1))


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


def _check_prompts(prompt: Any) -> None:
    if _is_prompt_list(prompt) and len(prompt) > MAX_PROMPTS:
        raise _out_of_bounds("prompt", f"{len(prompt)} prompts", f"at most {MAX_PROMPTS}")


def _media_types(*roots: Any) -> Iterator[str]:
    """Types of content other than text, at any depth."""
    pending = list(roots)
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending += item
        elif isinstance(item, dict):
            kind = item.get("type")
            if isinstance(kind, str) and (
                kind in _MEDIA or (kind in _MEDIA_WITH_SOURCE and any(s in item for s in _SOURCES))
            ):
                yield kind
            yield from (key for key in item if key in _MEDIA and isinstance(item[key], (dict, str)))
            pending += [v for v in item.values() if isinstance(v, (list, dict))]


def _out_of_bounds(field: str, value: str, bound: str) -> BadRequest:
    return BadRequest(
        f"`{field}` is {value}; allowed: {bound}", code="field_out_of_bounds", param=field
    )
