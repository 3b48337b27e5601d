"""What both clients are: a target, a retry policy and an HTTP connection pool."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._config import Target, resolve
from ._errors import ProtocolError
from ._retry import DEFAULT_MAX_RETRIES, RetryPolicy
from ._wire import CHUNK_BYTES, NoAnswer, Progress, Request, Response

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 5.0


class BaseClient:
    """Constructor and the parts of an exchange that do no I/O."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        allow_insecure: bool = False,
    ) -> None:
        self._target: Target = resolve(base_url, api_key, timeout, allow_insecure=allow_insecure)
        self._policy = RetryPolicy(max_retries=max_retries)

    @property
    def base_url(self) -> str:
        """Address of the server, without `/v1`."""
        return self._target.url

    def __repr__(self) -> str:
        key = "set" if self._target.api_key else "none"
        return f"{type(self).__name__}({self._target.url!r}, api_key=<{key}>)"

    def _pool_arguments(self) -> dict[str, Any]:
        import ssl

        import httpx

        seconds = self._target.timeout_s
        # Over http:// no certificate is ever looked at, and loading the trusted ones takes 15 to
        # 30 ms. This context trusts nobody, so it fails closed if TLS were spoken after all.
        trust: Any = True
        if self._target.url.startswith("http://"):
            trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return {
            "verify": trust,
            "timeout": httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT_S)),
            # What goes to this machine must not take a detour over HTTP_PROXY, with the key.
            "trust_env": not self._target.loopback,
        }

    def _openai_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "base_url": f"{self._target.url}/v1",
            # The stock client refuses to start without a key; a server without auth ignores it.
            "api_key": self._target.api_key or "none",
            "max_retries": self._policy.max_retries,
        }
        if self._target.timeout_given:
            arguments["timeout"] = self._target.timeout_s
        return {**arguments, **given}

    def _request_arguments(self, request: Request) -> dict[str, Any]:
        headers = {
            "Accept": "application/json",
            # Masks do not compress, and a compressed answer could unpack to anything.
            "Accept-Encoding": "identity",
            "User-Agent": _user_agent(),
            **request.headers,
        }
        if self._target.api_key:
            headers["Authorization"] = f"Bearer {self._target.api_key}"
        if request.body is not None:
            # Without it a streamed body would be sent chunked, which the server refuses (411).
            headers["Content-Length"] = str(len(request.body))
        return {
            "method": request.method,
            "url": self._target.url + request.path,
            "params": list(request.params) or None,
            "headers": headers,
        }

    def _response(self, status: int, headers: Mapping[str, str], body: bytes) -> Response:
        if status >= 400 and self._target.api_key:
            # A server or proxy may echo the request; the key must not reach an error's message.
            body = body.replace(self._target.api_key.encode(), b"[key]")
        return Response(status, {name.lower(): value for name, value in headers.items()}, body)

    def _no_answer(self, error: httpx.RequestError) -> NoAnswer:
        import ssl

        import httpx

        url = self._target.url
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                message = f"{url} shows a certificate that is not trusted: {cause.verify_message}"
                return NoAnswer(message, code="certificate", retryable=False)
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx.ConnectTimeout):
            return NoAnswer(f"cannot connect to {url} in time", code="timeout")
        if isinstance(error, httpx.TimeoutException):
            seconds = self._target.timeout_s
            return NoAnswer(f"{url} did not answer within {seconds:g} s", code="timeout")
        if isinstance(error, httpx.ConnectError):
            return NoAnswer(f"cannot connect to {url}: {_reason(error)}", code="connection")
        reason = _reason(error)
        return NoAnswer(f"the connection to {url} broke: {reason}", code="connection")


def _reason(error: Exception) -> str:
    """`Connection refused`, without the number that the operating system gives it."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)).lower() or type(error).__name__


class Receiver:
    """Collects an answer's body within a bound and reports how it grows."""

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
                f"{self._request.max_bytes} bytes, which is all it may have"
            )
        self._parts.append(chunk)
        if self._progress:
            self._progress(self._size, max(self._total, self._size))

    def body(self) -> bytes:
        return b"".join(self._parts)


def chunks(body: bytes, progress: Progress | None) -> Iterator[bytes]:
    """`body` in pieces, each reported once it was handed to the connection."""
    view = memoryview(body)
    if progress:
        progress(0, len(body))
    for start in range(0, len(body), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])
        if progress:
            progress(min(start + CHUNK_BYTES, len(body)), len(body))


def step(flow: Generator[Any, Any, Any], result: Any, error: Exception | None) -> Any:
    """Advance a flow by the outcome of its last effect; raises StopIteration at its end."""
    return flow.send(result) if error is None else flow.throw(error)


def _user_agent() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"bmt-client/{version('bmt-adapters')}"
    except PackageNotFoundError:
        return "bmt-client"
