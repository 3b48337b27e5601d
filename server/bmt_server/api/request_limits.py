"""What a request may ask of the engine: fields that are refused, and bounds on those that are not.

vLLM lets a request run templates, fetch URLs, pass tensors, name the salt of the prefix cache, and
ask for thousands of choices at once. Each has cost a server: CVE-2025-62426 and CVE-2026-115911
(chat_template), CVE-2026-24779 (media URLs), CVE-2026-56340 (prompt_embeds), CVE-2026-105756
(cache_salt), CVE-2026-34756 (n).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from bmt_server.errors import BadRequest
from bmt_server.registry.schemas import DEFAULT_TENANT

#: Fields that no request may have, and why.
REFUSED: Mapping[str, str] = {
    "chat_template": "the server's own template is used; send messages",
    "prompt_embeds": "prompts are text or token ids",
    "cache_salt": "the server sets it by tenant",
    "kv_transfer_params": "the server decides where keys and values are",
    "media_io_kwargs": "this server takes text alone",
    "mm_processor_kwargs": "this server takes text alone",
}
#: Largest number in a field. Negative log-probabilities mean all of the vocabulary to vLLM.
MOST: Mapping[str, int] = {
    "n": 64,
    "best_of": 64,
    "logprobs": 20,
    "top_logprobs": 20,
    "prompt_logprobs": 20,
}
#: Most entries of a field.
LONGEST: Mapping[str, int] = {
    "stop": 16,
    "stop_sequences": 16,
    "stop_token_ids": 128,
    "bad_words": 128,
    "allowed_token_ids": 4096,
    "logit_bias": 1024,
    "messages": 4096,
    "tools": 128,
}
PROMPTS = 64
STOP_CHARACTERS = 1024
# Types, and keys, of content that is no text.
_MEDIA = frozenset(
    ("image_url", "image_embeds", "input_image", "audio_url", "audio_embeds", "input_audio")
    + ("video_url", "input_file")
)
# Types of such content where one of _SOURCES is beside them: tools' arguments have types too.
_WITH_SOURCE = frozenset(("image", "document", "file"))
_SOURCES = ("source", "file")
_SALTED = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


def check(body: Mapping[str, Any]) -> None:
    """Raise BadRequest for the first field that is refused or out of bounds; it names the field,
    the value and the bound. Fields of a wrong type are vLLM's to refuse."""
    for field, why in REFUSED.items():
        if body.get(field) is not None:
            raise BadRequest(f"`{field}` is not taken: {why}", code="field_refused", param=field)
    for field, most in MOST.items():
        number = _number(body.get(field))
        if number is not None and not 0 <= number <= most:
            raise _beyond(field, f"{number:g}", f"0 to {most}")
    for field, longest in LONGEST.items():
        value = body.get(field)
        if isinstance(value, (list, dict)) and len(value) > longest:
            raise _beyond(field, f"{len(value)} entries", f"at most {longest}")
    _check_prompts(body.get("prompt", body.get("input")))
    stops = body.get("stop") or body.get("stop_sequences") or ()
    for stop in [stops] if isinstance(stops, str) else stops:
        if isinstance(stop, str) and len(stop) > STOP_CHARACTERS:
            raise _beyond("stop", f"{len(stop)} characters", f"at most {STOP_CHARACTERS}")
    for kind in _media(body.get("messages"), body.get("input")):
        raise BadRequest(
            f"content of type {kind!r} is not taken: this server takes text alone",
            code="field_refused",
            param="messages",
        )


def salt(body: dict[str, Any], path: str, tenant: str) -> None:
    """Keep one tenant's prompts out of another's prefix cache, whose hits can be told by time.

    Masks are kept apart by their names, which vLLM hashes; this does it for the base.
    """
    if tenant != DEFAULT_TENANT and path in _SALTED:
        body["cache_salt"] = hashlib.sha256(f"tenant:{tenant}".encode()).hexdigest()


def sequences(body: Mapping[str, Any]) -> int:
    """How many the engine runs for a request that `check` let pass: choices of each prompt."""
    prompt = body.get("prompt", body.get("input"))
    prompts = len(prompt) if _several(prompt) else 1
    return prompts * max(1, int(_number(body.get("n")) or 1))


def _several(prompt: Any) -> bool:
    """A list of prompts; a list of token ids is one, and one of messages too."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))


def _number(value: Any) -> float | None:
    """A number as vLLM would read it: text that is one counts; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _check_prompts(prompt: Any) -> None:
    if _several(prompt) and len(prompt) > PROMPTS:
        raise _beyond("prompt", f"{len(prompt)} prompts", f"at most {PROMPTS}")


def _media(*roots: Any) -> Iterator[str]:
    """Types of content that is no text, however deep they lie."""
    left = list(roots)
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            kind = item.get("type")
            if isinstance(kind, str) and (
                kind in _MEDIA or (kind in _WITH_SOURCE and any(s in item for s in _SOURCES))
            ):
                yield kind
            yield from (key for key in item if key in _MEDIA and isinstance(item[key], (dict, str)))
            left += [v for v in item.values() if isinstance(v, (list, dict))]


def _beyond(field: str, value: str, bound: str) -> BadRequest:
    return BadRequest(
        f"`{field}` is {value}; {bound} can be asked for", code="field_out_of_bounds", param=field
    )
