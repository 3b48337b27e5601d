"""Base class of both clients: server address, retry policy, HTTP headers and connection errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._config import Target, resolve
from ._retry import DEFAULT_MAX_RETRIES, RetryPolicy
from ._transport import NoAnswer, Request, Response

if TYPE_CHECKING:
    import httpx2

CONNECT_TIMEOUT_S = 5.0


class BaseClient:
    """Constructor and the parts of a request that do no I/O."""

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

        import httpx2

        seconds = self._target.timeout_s
        # Over http:// no certificate is verified, and loading the trusted ones takes 15 to 30 ms.
        # This context trusts no certificate, so TLS by a redirect or proxy fails closed.
        trust: Any = True
        if self._target.url.startswith("http://"):
            trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return {
            "verify": trust,
            "timeout": httpx2.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT_S)),
            # Requests to this machine, which carry the key, must not go through HTTP_PROXY.
            "trust_env": not self._target.loopback,
        }

    def _openai_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "base_url": f"{self._target.url}/v1",
            # The OpenAI client requires a key; a server without authentication ignores it.
            "api_key": self._target.api_key or "none",
            "max_retries": self._policy.max_retries,
        }
        if self._target.timeout_given:
            arguments["timeout"] = self._target.timeout_s
        return {**arguments, **given}

    def _request_arguments(self, request: Request) -> dict[str, Any]:
        headers = {
            "Accept": "application/json",
            # Masks are compressed already, and the size of a compressed answer is not bounded.
            "Accept-Encoding": "identity",
            "User-Agent": _user_agent(),
            **request.headers,
        }
        if self._target.api_key:
            headers["Authorization"] = f"Bearer {self._target.api_key}"
        if request.body is not None:
            # Without it httpx2 sends a streamed body chunked, which the server refuses (411).
            headers["Content-Length"] = str(len(request.body))
        return {
            "method": request.method,
            "url": self._target.url + request.path,
            "params": list(request.params) or None,
            "headers": headers,
        }

    def _response(self, status: int, headers: Mapping[str, str], body: bytes) -> Response:
        if status >= 400 and self._target.api_key:
            # A server or proxy may echo the request; the key must not end up in an error message.
            body = body.replace(self._target.api_key.encode(), b"[key]")
        return Response(status, {name.lower(): value for name, value in headers.items()}, body)

    def _no_answer(self, error: httpx2.RequestError) -> NoAnswer:
        import ssl

        import httpx2

        url = self._target.url
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                message = f"{url} has a certificate that is not trusted: {cause.verify_message}"
                return NoAnswer(message, code="certificate", retryable=False)
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, httpx2.ConnectTimeout):
            return NoAnswer(f"cannot connect to {url} in time", code="timeout")
        if isinstance(error, httpx2.TimeoutException):
            seconds = self._target.timeout_s
            return NoAnswer(f"{url} did not answer within {seconds:g} s", code="timeout")
        if isinstance(error, httpx2.ConnectError):
            return NoAnswer(f"cannot connect to {url}: {_reason(error)}", code="connection")
        reason = _reason(error)
        return NoAnswer(f"the connection to {url} broke: {reason}", code="connection")


def _reason(error: Exception) -> str:
    """Text of an OS error without its number: `connection refused`."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)).lower() or type(error).__name__


def _user_agent() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"bmt-client/{version('bmt-adapters')}"
    except PackageNotFoundError:
        return "bmt-client"
