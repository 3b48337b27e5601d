"""Requests, responses and the effects by which flows ask for I/O. Performs no I/O itself.

A flow is a generator that yields effects (send a request, sleep, call a function) and receives
their results. `BmtClient` performs effects with blocking calls, `AsyncBmtClient` with awaits; the
logic is in the flows alone.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from ._errors import (
    AuthenticationError,
    BmtClientError,
    Conflict,
    Invalid,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RateLimited,
    TooLarge,
    Unavailable,
)

T = TypeVar("T")

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in total); restarts from 0 if a transfer is retried."""

JSON_BYTES = 64 << 20  # bound on a JSON answer, bytes
CHUNK_BYTES = 64 << 10  # step of the progress reports, bytes


_BY_STATUS: dict[int, type[BmtClientError]] = {
    400: Invalid,
    401: AuthenticationError,
    403: PermissionDenied,
    404: NotFound,
    408: Unavailable,
    409: Conflict,
    411: Invalid,
    412: Conflict,
    413: TooLarge,
    415: Invalid,
    422: Invalid,
    429: RateLimited,
}

# A retry cannot succeed: the method is not implemented, or the registry is full.
_FINAL_5XX = frozenset({501, 505, 507})


@dataclass(frozen=True, slots=True)
class Request:
    """HTTP request of one route; the client adds address, key and common headers."""

    method: str
    path: str  # below the base URL, percent-encoded
    params: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    sent: Progress | None = None  # called while the body is sent
    received: Progress | None = None  # called while the answer arrives
    max_bytes: int = JSON_BYTES  # bound on the answer, bytes
    retry: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    """HTTP response with its whole body."""

    status: int
    headers: Mapping[str, str]  # lower-case names
    body: bytes
    attempts: int = 1  # number of times the request was sent

    def retry_after_s(self) -> float | None:
        """Seconds from `retry-after-ms` or `Retry-After` (number or HTTP date), or None."""
        for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
            try:
                seconds = float(self.headers[name]) * unit
            except (KeyError, ValueError):
                continue
            # NaN and negative waits come from a faulty server and count as none.
            return seconds if seconds >= 0 else None
        date = email.utils.parsedate_tz(self.headers.get("retry-after", ""))
        if date is None:
            return None
        try:
            return max(0.0, email.utils.mktime_tz(date) - time.time())
        except (OverflowError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Send:
    """Effect: send a request. Yields its `Response`, or raises `NoAnswer` in the flow."""

    request: Request


@dataclass(frozen=True, slots=True)
class Sleep:
    """Effect: wait for `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Call:
    """Effect: run blocking work (disk, hashing, decoding) outside the event loop."""

    function: Callable[[], Any]


Effect: TypeAlias = Send | Sleep | Call
Flow: TypeAlias = Generator[Effect, Any, T]


class NoAnswer(Exception):
    """The connection failed before a complete answer arrived."""

    def __init__(self, message: str, *, code: str, retryable: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class Receiver:
    """Body of an answer: collected within `Request.max_bytes`, with progress reports."""

    def __init__(self, request: Request, status: int, headers: Mapping[str, str]) -> None:
        self._request = request
        self._parts: list[bytes] = []
        self._size = 0
        self._total = int(length) if (length := headers.get("content-length", "")).isdigit() else 0
        self._progress = request.received if status < 300 else None

    def take(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._request.max_bytes:
            raise ProtocolError(
                f"the answer to {self._request.method} {self._request.path} is longer than "
                f"its bound of {self._request.max_bytes} bytes"
            )
        self._parts.append(chunk)
        if self._progress:
            self._progress(self._size, max(self._total, self._size))

    def body(self) -> bytes:
        return b"".join(self._parts)


def chunks(body: bytes, progress: Progress | None) -> Iterator[bytes]:
    """Split `body` into chunks; report each after the connection took it."""
    view = memoryview(body)
    if progress:
        progress(0, len(body))
    for start in range(0, len(body), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])
        if progress:
            progress(min(start + CHUNK_BYTES, len(body)), len(body))


def step(flow: Generator[Any, Any, Any], result: Any, error: Exception | None) -> Any:
    """Advance a flow with the result or error of its last effect; StopIteration ends it."""
    return flow.send(result) if error is None else flow.throw(error)


def unexpected(response: Response, before: str, after: str = "") -> ProtocolError:
    """Return the error for an answer in a form that no bmt-server gives; it quotes the start."""
    start = response.body[:40].decode("utf-8", "replace")
    return ProtocolError(
        f"{before} {start!r}{after}; is the base URL a bmt-server's?",
        status=response.status,
        request_id=response.headers.get("x-request-id"),
    )


def parse_json(response: Response) -> dict[str, Any]:
    """Parse the JSON object of a 2xx answer. Raises ProtocolError."""
    try:
        raw = json.loads(response.body)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise unexpected(response, "the answer is not a JSON object but")
    return raw


def error_from_response(response: Response) -> BmtClientError:
    """Return the typed error of an answer with status >= 300.

    Reads OpenAI's error body `{"error": {"message", "code", "param", "request_id"}}`. Every field
    is optional, because a proxy may answer instead of the server.
    """
    status = response.status
    body = _error_object(response)
    message = body.get("message")
    if not isinstance(message, str) or not message:
        message = f"the server answered {status}"
        if status < 400:
            location = response.headers.get("location", "another address")
            message = f"the server redirects to {location}; set that address as the base URL"
    if status == 407:
        message = f"a proxy asks for a user and a password: {message}"
    kind = _BY_STATUS.get(status) or (Unavailable if status >= 500 else ProtocolError)
    code = _code(body)
    request_id = response.headers.get("x-request-id") or body.get("request_id")
    return kind(
        message,
        status=status,
        code=code,
        param=body["param"] if isinstance(body.get("param"), str) else None,
        request_id=request_id if isinstance(request_id, str) else None,
        retry_after=response.retry_after_s(),
        retryable=False if status in _FINAL_5XX else None,
    )


def foreign(response: Response, request: Request) -> BmtClientError | None:
    """The error if an answer shows that no bmt-server is at the address, or None.

    A bmt-server's 404 has a `code`. Other servers of OpenAI's API have none on these routes.
    """
    ours = request.path.startswith(
        ("/v1/masks", "/v1/blobs", "/v1/keys", "/v1/me", "/v1/usage", "/readyz")
    )
    body = _error_object(response)
    if response.status not in (404, 405, 501) or _code(body) or (body and not ours):
        return None
    kind = NotFound if response.status == 404 else ProtocolError
    message = body.get("message")
    said = f", {message}" if isinstance(message, str) and message else ""
    return kind(
        f"the server answered {response.status} to {request.method} {request.path}{said}: it is no "
        "bmt-server, or the base URL lacks the path below which it is served",
        status=response.status,
        code="not_a_bmt_server",
        request_id=response.headers.get("x-request-id"),
    )


def acknowledge(response: Response) -> None:
    """Accept the answer of a route without a result: 204. Raises ProtocolError for any other."""
    if response.status != 204 or response.body:
        said = f"the server answered {response.status} and"
        raise unexpected(response, said, ", where a bmt-server answers 204")


def _code(error: Mapping[str, Any]) -> str | None:
    # vLLM's own errors repeat the status here as a number, which adds nothing.
    code = error.get("code")
    return code if isinstance(code, str) and code and not code.isdigit() else None


def _error_object(response: Response) -> dict[str, Any]:
    try:
        raw = json.loads(response.body)
    except (ValueError, RecursionError):
        return {}
    if isinstance(raw, dict):
        inner = raw.get("error", raw)
        if isinstance(inner, dict):
            return inner
        if isinstance(inner, str):
            return {"message": inner}
    return {}
