"""Events of a streamed response, as far as errors are concerned."""

from __future__ import annotations

import json
from typing import Any

#: Events that `/v1/responses` sends before the engine has seen the request.
_PREAMBLE = (b"event: response.created\n", b"event: response.in_progress\n", b"event: ping\n")
_ERROR = (b'data: {"error"', b"event: error\n")


def is_preamble(event: bytes) -> bool:
    """True for an event that does not say that the engine has answered."""
    return not event.strip() or event.startswith(_PREAMBLE)


def read_error(event: bytes) -> dict[str, Any] | None:
    """The error of an event, in the form of vLLM's routes, or None for any other event."""
    if not event.startswith(_ERROR):
        return None
    data = event.partition(b"data:")[2].partition(b"\n")[0]
    try:
        value = json.loads(data)
    except ValueError:
        return None
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else None


def status_of(error: dict[str, Any]) -> int:
    """HTTP status that an event's error names; 500 without one."""
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def with_error(event: bytes, error: dict[str, Any]) -> bytes:
    """The event with another error; the rest keeps the form of its route."""
    head, _, rest = event.partition(b"data:")
    data, _, tail = rest.partition(b"\n")
    changed = {**json.loads(data), "error": error}
    return head + b"data: " + json.dumps(changed).encode() + b"\n" + tail
