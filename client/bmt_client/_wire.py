"""What crosses between the operations of the client and whatever carries them out. No I/O.

An operation is a generator (`Flow`) that yields effects (send this, wait, run this function) and
is sent their results. `BmtClient` performs the effects with blocking calls and `AsyncBmtClient`
with awaits, so neither holds any logic of its own.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Callable, Generator, Mapping
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
"""Called with (bytes done, bytes in all); starts again from 0 when a transfer is retried."""

JSON_BYTES = 64 << 20  # longest JSON answer that is read, bytes
CHUNK_BYTES = 64 << 10  # grain of the progress reports, bytes


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

# Trying again cannot help: the method is not there, or the registry is full.
_FINAL_5XX = frozenset({501, 505, 507})


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # below the base URL, percent-encoded
    params: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    sent: Progress | None = None  # told as the body goes out
    received: Progress | None = None  # told as the answer comes in
    max_bytes: int = JSON_BYTES  # longest answer that is read, bytes
    retry: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Mapping[str, str]  # lower-case names
    body: bytes
    attempts: int = 1  # sends that it took

    def retry_after_s(self) -> float | None:
        """Seconds asked for by `retry-after-ms` or `Retry-After` (number or HTTP date), or None."""
        for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
            try:
                seconds = float(self.headers[name]) * unit
            except (KeyError, ValueError):
                continue
            # NaN and negative waits are a broken server's: as good as none.
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
    """Effect: send, answer with the `Response`; raise `NoAnswer` into the flow if none comes."""

    request: Request


@dataclass(frozen=True, slots=True)
class Sleep:
    """Effect: wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Call:
    """Effect: run blocking work (disk, hashing, decoding) off the event loop."""

    function: Callable[[], Any]


Effect: TypeAlias = Send | Sleep | Call
Flow: TypeAlias = Generator[Effect, Any, T]


class NoAnswer(Exception):
    """The connection failed before a whole answer came."""

    def __init__(self, message: str, *, code: str, retryable: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


def parse_json(response: Response) -> dict[str, Any]:
    """The JSON object of a 2xx answer."""
    try:
        raw = json.loads(response.body)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        start = response.body[:40].decode("utf-8", "replace")
        raise ProtocolError(
            f"the answer is not a JSON object but {start!r}; is the base URL a bmt-server's?",
            status=response.status,
            request_id=response.headers.get("x-request-id"),
        )
    return raw


def error_from_response(response: Response) -> BmtClientError:
    """The typed error of an answer with status >= 300.

    Reads OpenAI's error shape `{"error": {"message", "code", "param", "request_id"}}` and makes do
    with less, since a proxy in between may answer for the server.
    """
    status = response.status
    body = _error_object(response)
    message = body.get("message")
    if not isinstance(message, str) or not message:
        message = f"the server answered {status}"
        if status < 400:
            where = response.headers.get("location", "elsewhere")
            message = f"the server redirects to {where}; give that address as the base URL"
    kind = _BY_STATUS.get(status) or (Unavailable if status >= 500 else ProtocolError)
    code = body.get("code")
    request_id = response.headers.get("x-request-id") or body.get("request_id")
    return kind(
        message,
        status=status,
        # vLLM's own errors carry the status as an integer here; only words say more.
        code=code if isinstance(code, str) and code and not code.isdigit() else None,
        param=body["param"] if isinstance(body.get("param"), str) else None,
        request_id=request_id if isinstance(request_id, str) else None,
        retry_after=response.retry_after_s(),
        retryable=False if status in _FINAL_5XX else None,
    )


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
