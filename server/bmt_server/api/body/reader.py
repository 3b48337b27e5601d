"""JSON body of a request: read within bounds, parsed once, and handed to vLLM's app."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from bmt_server.api.asgi import Message, Receive
from bmt_server.api.body.bounds import KIB, BodyBounds
from bmt_server.api.body.turns import Turns
from bmt_server.errors import BadRequest, UnsupportedMedia

#: Bodies up to this size are parsed at once; longer ones one at a time. The dearest body of this
#: size takes 3 ms of validation.
SMALL_BODY_BYTES = 2 * KIB
# Headers that vLLM's app sees. Others of its own choose a priority, an engine of several, a session
# or the form of its load figures; those of later versions are not known.
_APP_HEADERS = frozenset(
    (b"accept", b"content-type", b"host", b"traceparent", b"tracestate", b"user-agent")
    + (b"x-request-id",)
)
# A body is looked at when its first part has this size, and whenever it has doubled since.
_FIRST_LOOK_BYTES = 32 * KIB


async def read_body(headers: Mapping[str, str], receive: Receive, bounds: BodyBounds) -> bytes:
    """Bytes of a JSON body. Raises UnsupportedMedia, PayloadTooLarge, BadRequest.

    A body beyond a bound is refused while it arrives.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedMedia(f"content type is {content_type!r}; send application/json")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit():
        bounds.check_size(int(length[:20]))
    data, next_look = bytearray(), _FIRST_LOOK_BYTES
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the client closed the connection", code="disconnected")
        data += message.get("body", b"")
        bounds.check_size(len(data))
        if not message.get("more_body"):
            return bytes(data)
        if len(data) >= next_look:
            bounds.check_structure(data)
            next_look = 2 * len(data)
            # Other connections get their turn between the parts of a long body.
            await asyncio.sleep(0)


def parse_json(data: bytes) -> dict[str, Any]:
    """The JSON object of a body whose structure is within its bounds. Raises BadRequest.

    msgspec's parser also refuses what no text can hold: lone surrogates, NaN, infinite numbers.
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}", code="bad_json") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", code="bad_json")
    return value


def replace_body(
    scope: Message,
    receive: Receive,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    turns: Turns,
) -> tuple[Message, Receive]:
    """Scope and receive of the same request with another body and the headers that the app needs.

    headers: further ones, which replace the client's.

    The body is serialized again, so that vLLM reads exactly what was checked here: two parsers may
    differ on the original bytes, for example on repeated keys. A long body is handed over in its
    turn, because the app parses and validates it in the same step of the event loop.
    """
    data = msgspec.json.encode(body)
    added = {"content-length": str(len(data)), **headers}
    replaced = {name.encode() for name in added}
    kept = [h for h in scope["headers"] if h[0].lower() in _APP_HEADERS - replaced]
    kept += [(name.encode(), value.encode()) for name, value in added.items()]
    sent = False

    async def receive_body() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        if len(data) > SMALL_BODY_BYTES:
            await turns.take()
        sent = True
        return {"type": "http.request", "body": data, "more_body": False}

    return {**scope, "headers": kept}, receive_body
