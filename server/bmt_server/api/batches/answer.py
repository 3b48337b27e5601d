"""Requests of a batch's lines to this server, and the rows of its files that they become."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import msgspec

from bmt_server.api.asgi import App, Message
from bmt_server.api.own_requests import own_scope
from bmt_server.registry.batches.record import Batch

#: Priority of a line at least, where vLLM schedules by priority: behind all live requests.
LINE_PRIORITY = 1 << 20


@dataclass(frozen=True)
class Answer:
    """A complete answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def code(self) -> str:
        """The code of an error; empty without one."""
        return str(self._error().get("code", ""))

    @property
    def message(self) -> str:
        """The text of an error."""
        return str(self._error().get("message", "")) or f"status {self.status}"

    @property
    def retry_after_s(self) -> float:
        """Seconds that an error asks to wait; 0 if it says nothing."""
        text = self.headers.get("retry-after", "")
        return float(text) if text.isdecimal() else 0.0

    def _error(self) -> dict[str, Any]:
        if self.ok:
            return {}
        try:
            error = json.loads(self.body)["error"]
        except (ValueError, KeyError, TypeError):
            return {}
        return error if isinstance(error, dict) else {}


async def ask(app: App, batch: Batch, data: bytes, request_id: str, left: asyncio.Event) -> Answer:
    """The answer to a line's request, in the name of the batch's key.

    data: its body, JSON. left: set to end it.
    """
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(data)),
        (b"x-request-id", request_id.encode()),
    ]
    scope = own_scope(
        "POST", batch.endpoint, headers, key_hash=batch.key_hash or None, background=True
    )
    started: Message = {}
    found = bytearray()
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": data, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
        elif message["type"] == "http.response.body":
            found.extend(message.get("body", b""))

    await app(scope, receive, send)
    named = {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in started.get("headers", ())
    }
    return Answer(started.get("status", 500), named, bytes(found))


def request_id(batch: Batch, index: int) -> str:
    """The id of a line's request, the same however often it is sent."""
    return f"batch_req_{batch.id.removeprefix('batch_')}{index:05d}"


def answered_row(batch: Batch, index: int, custom_id: str, answer: Answer) -> bytes:
    """A row for an answer, in OpenAI's form."""
    response = {
        "status_code": answer.status,
        "request_id": request_id(batch, index),
        "body": _one_line(answer.body),
    }
    return _row(batch, index, custom_id, response=response, error=None)


def unanswered_row(batch: Batch, index: int, custom_id: str, code: str, message: str) -> bytes:
    """A row for a line that was not answered, in OpenAI's form."""
    error = {"code": code, "message": message}
    return _row(batch, index, custom_id, response=None, error=error)


def _row(batch: Batch, index: int, custom_id: str, **rest: Any) -> bytes:
    row = {"id": request_id(batch, index), "custom_id": custom_id, **rest}
    return msgspec.json.encode(row) + b"\n"


def _one_line(body: bytes) -> Any:
    """JSON as it is, unless it has the end of a line; what is no JSON, as text."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return body.decode(errors="replace")
    return value if b"\n" in body or b"\r" in body else msgspec.Raw(body)
