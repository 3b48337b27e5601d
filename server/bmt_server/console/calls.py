"""Requests of a page to the API of its own process, in the name of the session's key.

They pass the app as those of any other client do (`api/own_requests.py`), and the console can show
or change nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as jsonlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import Request

from bmt_server.api.asgi import Message
from bmt_server.api.own_requests import own_scope
from bmt_server.errors import ApiError, from_status

# Parts of an answer that wait for the browser.
_WAITING = 64


@dataclass(frozen=True)
class Answer:
    """A complete answer of the API. headers: by lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return jsonlib.loads(self.body) if self.body else None


@dataclass(frozen=True)
class Call:
    """One request to the API. path: with its parts encoded; body: pieces of `size` bytes."""

    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]
    body: AsyncIterator[bytes] | None = None

    @classmethod
    def of(
        cls,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        json: Any = None,
        data: bytes | None = None,
        pieces: AsyncIterator[bytes] | None = None,
        size: int = 0,
        content_type: str = "application/octet-stream",
    ) -> Call:
        """A call whose body is `json`, `data`, or the pieces of a larger one."""
        if json is not None:
            data, content_type = jsonlib.dumps(json).encode(), "application/json"
        headers = []
        if data is not None:
            size, pieces = len(data), _once(data)
        if pieces is not None:
            headers = [
                (b"content-type", content_type.encode("latin-1")),
                (b"content-length", b"%d" % size),
            ]
        given = {k: v for k, v in (query or {}).items() if v is not None}
        return cls(method, path, urlencode(given), headers, pieces)


class Stream:
    """Body of an answer of the API as it comes. Once closed, the API sees its client leave."""

    def __init__(
        self, parts: asyncio.Queue[Message | None], task: asyncio.Task[None], left: asyncio.Event
    ) -> None:
        self._parts, self._task, self._left = parts, task, left

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The pieces. Raises the error that has ended the answer before its end."""
        async for message in _until_end(self._parts):
            yield message.get("body", b"")
        await self._task

    async def close(self) -> None:
        """End the request, if it still runs."""
        await _end(self._task, self._left)


class Api:
    """The API in the name of one key. key_hash: SHA-256 of the key."""

    def __init__(self, request: Request, key_hash: str) -> None:
        self._request, self._key_hash = request, key_hash

    async def get(self, path: str, **query: Any) -> Any:
        """JSON of an answer. Raises ApiError."""
        return (await self.send(Call.of("GET", path, query=query))).json()

    async def send(self, call: Call) -> Answer:
        """A complete answer. Raises ApiError for one with an error status."""
        started: Message = {}
        body = bytearray()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))

        await self._run(call, send, asyncio.Event())
        answer = Answer(started["status"], _named(started), bytes(body))
        if answer.status >= 400:
            raise error_of(answer)
        return answer

    async def stream(self, call: Call) -> Stream:
        """An answer whose body is read as it comes, and which is closed in any case.

        Raises ApiError before it begins.
        """
        parts: asyncio.Queue[Message | None] = asyncio.Queue(_WAITING)
        left = asyncio.Event()

        async def run() -> None:
            try:
                await self._run(call, parts.put, left)
            finally:
                if not left.is_set():
                    await parts.put(None)

        task = asyncio.create_task(run(), name="bmt-console-stream")
        try:
            started = await parts.get()
            if started is None:
                await task
                raise ApiError("internal error; see the server's log")
            if started["status"] >= 400:
                body = b"".join([m.get("body", b"") async for m in _until_end(parts)])
                raise error_of(Answer(started["status"], _named(started), body))
        except BaseException:
            await _end(task, left)
            raise
        return Stream(parts, task, left)

    async def _run(self, call: Call, send: Any, left: asyncio.Event) -> None:
        app = self._request.app
        scope = own_scope(
            call.method,
            call.path,
            call.headers,
            key_hash=self._key_hash,
            query=call.query,
            outer=self._request.scope,
        )
        pieces = call.body

        async def receive() -> Message:
            nonlocal pieces
            if pieces is not None:
                async for piece in pieces:
                    return {"type": "http.request", "body": piece, "more_body": True}
                pieces = None
                return {"type": "http.request", "body": b"", "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        if pieces is None:
            pieces = _once(b"")
        await app(scope, receive, send)


def error_of(answer: Answer) -> ApiError:
    """The error that an answer of the API describes."""
    try:
        described = jsonlib.loads(answer.body)["error"]
        message, code = str(described["message"]), str(described["code"])
    except (ValueError, KeyError, TypeError):
        message, code = answer.body.decode(errors="replace")[:1000], ""
    error = from_status(answer.status, message or f"error {answer.status}", None)
    error.code = code or error.code
    after = answer.headers.get("retry-after", "")
    error.retry_after = int(after) if after.isdecimal() else None
    return error


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _named(started: Message) -> dict[str, str]:
    headers = started.get("headers", [])
    return {n.decode("latin-1").lower(): v.decode("latin-1") for n, v in headers}


async def _until_end(parts: asyncio.Queue[Message | None]) -> AsyncIterator[Message]:
    while (message := await parts.get()) is not None:
        yield message


async def _end(task: asyncio.Task[None], left: asyncio.Event) -> None:
    left.set()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
