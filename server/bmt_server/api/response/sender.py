"""Response of one HTTP request: its headers, the form of its errors, and the start of streams."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from http.client import responses

from bmt_server.api.access_log import RequestRecord
from bmt_server.api.asgi import Message, Send
from bmt_server.api.response import event_stream
from bmt_server.api.response.cors import exposed
from bmt_server.api.response.refusals import Refusal
from bmt_server.errors import ApiError, from_status

logger = logging.getLogger("vllm.bmt_server")

# vLLM quotes values of the request in its messages.
_MAX_MESSAGE_CHARACTERS = 1000
# A path of two parts or more in a message of vLLM; routes of the API stay readable.
_FOLDER = re.compile(r"(?<![\w:/.])/(?!v\d/)[\w.+-]+(?:/[\w.+-]+)+")
# A registry's URL, or a host of it.
_ADDRESS = re.compile(r"\b[a-z][a-z+]*://[^\s'\"]+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_BODY_HEADERS = (b"content-type", b"content-length", b"transfer-encoding")


def without_places(message: str) -> str:
    """The message without folders and addresses of the server, which are for its log."""
    return _FOLDER.sub("<path>", _ADDRESS.sub("<address>", message))


def _read_error(body: bytes) -> tuple[str, str | None]:
    """Message and field of an error response of vLLM, FastAPI or Starlette, in any of their forms.

    Other responses are their own message.
    """
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode(errors="replace"), None
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        param = value["error"].get("param")
        return str(value["error"].get("message", "")), param if isinstance(param, str) else None
    if isinstance(value, dict) and value.get("detail"):
        return str(value["detail"]), None
    return "" if value in ({}, None) else str(value), None


class ResponseReplaced(Exception):
    """Raised into the app when its response was replaced by an error of this server."""


class ResponseSender:
    """Sends one response: adds headers, waits for the mask, and gives all errors one form.

    vLLM's app has three forms of errors, by route; its responses with an error status are sent in
    this server's form instead. Its 500 are logged, because vLLM logs only some of them.

    vLLM's streams begin with 200 before the engine has seen the request. Here a stream begins with
    the engine's first event: if that is an error, the response is that error. Errors of later
    events are counted and logged as those of other responses.

    refusal: the fault of the request that the engine's calls note; it is the error then. cors:
    headers of answers that the app's own layer for browsers has not made.
    """

    def __init__(
        self,
        send: Send,
        record: RequestRecord,
        refusal: Refusal,
        cors: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._send = send
        self._record = record
        self._refusal = refusal
        self._cors = cors
        #: `x-ratelimit-…`, of whatever response is sent.
        self.limit_headers: list[tuple[bytes, bytes]] = []
        #: Of a request that has its version.
        self.model_headers: list[tuple[bytes, bytes]] = []
        self._ready: Callable[[], Awaitable[None]] | None = None
        #: True after the last part of the answer.
        self.complete = False
        self._started = False
        self._replaced: ResponseReplaced | None = None
        # The app's response, if it is an error: its start, and its body as far as it has come.
        self._error: tuple[Message, bytearray] | None = None
        self._streams = False
        # Messages of a stream whose first event has not come.
        self._held: list[Message] = []

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
            if message["status"] >= 400:
                self._error = (message, bytearray())
                return
            self._streams = _is_event_stream(message)
            if self._streams:
                self._held = [message]
                return
        elif self._error is not None:
            start, body = self._error
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            self._error = None
            await self._send_app_error(start["status"], bytes(body), start.get("headers", []))
            return
        elif self._streams:
            await self._send_event(message)
            return
        await self.pass_on(message)

    async def _send_event(self, message: Message) -> None:
        """Send the next event of a stream. Raises ResponseReplaced if the first one is an error."""
        body = message.get("body", b"")
        error = event_stream.read_error(body)
        if error is not None:
            status = event_stream.status_of(error)
            if self._held:
                await self._send_app_error(status, json.dumps({"error": error}).encode())
                self._replaced = ResponseReplaced(str(error.get("message")))
                raise self._replaced
            sent = self._app_error(status, json.dumps({"error": error}).encode())
            self._record.error = sent.code
            described = sent.body(self._record.request_id)["error"]
            message = {**message, "body": event_stream.with_error(body, described)}
        if self._held:
            self._held.append(message)
            if event_stream.is_preamble(body) and message.get("more_body"):
                return
        held, self._held = self._held or [message], []
        for one in held:
            await self.pass_on(one)

    def _app_error(self, status: int, body: bytes) -> ApiError:
        """This server's form of an error of the app: the request's fault, if one is noted."""
        if self._refusal.error is not None:
            return self._refusal.error
        message, param = _read_error(body)
        if status == 500:
            logger.error("Request %s failed: %s", self._record.request_id, message or "no message")
            message = "internal error; see the server's log"
        message = message or responses.get(status, "error")
        return from_status(status, without_places(message[:_MAX_MESSAGE_CHARACTERS]), param)

    async def _send_app_error(
        self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send an error response of the app in this server's form."""
        kept = [(n, v) for n, v in headers if n.lower() not in _BODY_HEADERS]
        await self.send_error(self._app_error(status, body), kept)

    async def send_failure(self) -> None:
        """Send the error for an exception of the app: the request's fault, if one is noted."""
        if self._refusal.error is None:
            logger.exception("Request %s failed.", self._record.request_id)
        await self.send_error(
            self._refusal.error or ApiError("internal error; see the server's log")
        )

    async def pass_on(self, message: Message) -> None:
        """Send a message with this server's headers and nothing else changed, as for probes."""
        if message["type"] == "http.response.start":
            self._started = True
            self._record.status = message["status"]
            message = {**message, "headers": self._headers(message)}
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self.complete = True
        await self._send(message)

    async def send_error(
        self, error: ApiError, more_headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Send an error in OpenAI's form, or raise it if a response has already started."""
        self._ready = self._error = None
        self._held = []
        self._record.error = error.code
        if self._started:
            raise error
        described = error.body(self._record.request_id)
        if error.status >= 500:
            # Others describe the request alone, and name its path.
            described["error"]["message"] = without_places(str(error))
            if described["error"]["message"] != str(error):
                logger.error("Request %s failed: %s", self._record.request_id, error)
        body = json.dumps(described).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += more_headers
        if error.retry_after is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        start = {"type": "http.response.start", "status": error.status, "headers": headers}
        await self.pass_on(start)
        await self.pass_on({"type": "http.response.body", "body": body})

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        headers = [h for h in message.get("headers", []) if h[0].lower() != b"x-request-id"]
        headers.append((b"x-request-id", self._record.request_id.encode()))
        names = {h[0].lower() for h in headers}
        # vLLM's own 503 responses have no Retry-After, and clients decide by it.
        if message["status"] == 503 and b"retry-after" not in names:
            headers.append((b"retry-after", b"1"))
        if b"x-content-type-options" not in names:
            headers.append((b"x-content-type-options", b"nosniff"))
        headers += self.limit_headers + self.model_headers
        if self._cors:
            if b"access-control-allow-origin" not in names:
                headers += self._cors
            headers += exposed(h[0].lower() for h in headers)
        return headers


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", [])
    )
