"""ASGI messages of one HTTP request: headers, JSON body, and the response with its error form."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from bmt_server.api.access_log import RequestRecord
from bmt_server.errors import ApiError, BadRequest, PayloadTooLarge, UnsupportedMedia

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 32 << 20
_CREDENTIALS = ("authorization", "x-api-key")


def read_headers(scope: Message) -> dict[str, str]:
    """Last value of each header, by lower-case name; a repeated credential header counts as none.

    Two credentials would leave it open which of them a proxy in front has checked.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1")
        headers[name] = "" if name in _CREDENTIALS and name in headers else value
    return headers


async def read_json_body(headers: Mapping[str, str], receive: Receive) -> dict[str, Any]:
    """The JSON object of a request. Raises UnsupportedMedia, PayloadTooLarge, BadRequest."""
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedMedia(f"content type is {content_type!r}; send application/json")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the client closed the connection", code="disconnected")
        data += message.get("body", b"")
        if len(data) > MAX_BODY_BYTES:
            raise _too_large()
        if not message.get("more_body"):
            break
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}", code="bad_json") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", code="bad_json")
    return value


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes; send a shorter one")


def replace_body(
    scope: Message, receive: Receive, body: Mapping[str, Any], headers: Mapping[str, str]
) -> tuple[Message, Receive]:
    """Scope and receive of the same request with another body and further headers.

    The body is serialized again, so that vLLM reads exactly what was checked here: two parsers may
    differ on the original bytes, for example on repeated keys.
    """
    data = json.dumps(body).encode()
    added = {"content-length": str(len(data)), **headers}
    replaced = {name.encode() for name in (*added, "transfer-encoding")}
    kept = [h for h in scope["headers"] if h[0].lower() not in replaced]
    kept += [(name.encode(), value.encode()) for name, value in added.items()]
    sent = False

    async def receive_body() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": data, "more_body": False}
        return await receive()

    return {**scope, "headers": kept}, receive_body


class ResponseReplaced(Exception):
    """Raised into the app when its response was replaced by an error of this server."""


class ResponseSender:
    """Sends one response: adds headers, waits for the mask, and turns errors into responses."""

    def __init__(self, send: Send, record: RequestRecord) -> None:
        self._send = send
        self._record = record
        self._ready: Callable[[], Awaitable[None]] | None = None
        self._started = False
        self._replaced: ResponseReplaced | None = None

    @property
    def replaced(self) -> bool:
        """True after an error was sent in place of the app's response."""
        return self._replaced is not None

    def wait_for(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Send nothing before `ready` has returned; an ApiError of it becomes the response."""
        self._ready = ready

    async def send(self, message: Message) -> None:
        """Forward a message of the app. Raises ResponseReplaced if an error has taken its place."""
        if self._replaced is not None:
            raise self._replaced
        ready, self._ready = self._ready, None
        if ready is not None:
            try:
                await ready()
                self._record.span.add_event("mask ready")
            except ApiError as error:
                await self.send_error(error)
                self._replaced = ResponseReplaced(str(error))
                raise self._replaced from None
        if message["type"] == "http.response.start":
            self._started = True
            self._record.status = message["status"]
            message = {**message, "headers": self._headers(message)}
        await self._send(message)

    async def send_error(self, error: ApiError) -> None:
        """Send an error in OpenAI's form, or raise it if a response has already started."""
        self._ready = None
        self._record.error = error.code
        if self._started:
            raise error
        body = json.dumps(error.body(self._record.request_id)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if error.retry_after is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        headers = [h for h in message.get("headers", []) if h[0].lower() != b"x-request-id"]
        headers.append((b"x-request-id", self._record.request_id.encode()))
        names = {h[0].lower() for h in headers}
        # vLLM's own 503 responses have no Retry-After, and clients decide by it.
        if message["status"] == 503 and b"retry-after" not in names:
            headers.append((b"retry-after", b"1"))
        if b"x-content-type-options" not in names:
            headers.append((b"x-content-type-options", b"nosniff"))
        return headers
