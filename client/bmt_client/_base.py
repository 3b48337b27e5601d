"""Base class of both clients: server address, retry policy, HTTP headers and connection errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ._config import Target, resolve
from ._connection.failures import no_answer
from ._connection.trust import build, http_arguments
from ._errors import UsageError
from ._retry import DEFAULT_MAX_RETRIES, RetryPolicy
from ._transport import NoAnswer, Request, Response

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

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
        ca_file: str | None = None,
        allow_insecure: bool = False,
    ) -> None:
        self._target: Target = resolve(
            base_url, api_key, timeout, ca_file=ca_file, allow_insecure=allow_insecure
        )
        self._policy = RetryPolicy(max_retries=max_retries)

    @property
    def base_url(self) -> str:
        """Address of the server, without `/v1`."""
        return self._target.url

    def __repr__(self) -> str:
        key = "set" if self._target.api_key else "none"
        return f"{type(self).__name__}({self._target.url!r}, api_key=<{key}>)"

    def _pool(self, kind: type[T], given: object | None) -> T:
        """The given `httpx2` client, or a new one with the timeouts of this client."""
        import httpx2

        if given is None:
            seconds = self._target.timeout_s
            timeout = httpx2.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT_S))
            return build(kind, {"timeout": timeout, **http_arguments(self._target)})
        if not isinstance(given, kind):
            raise UsageError(
                f"http_client is a {type(given).__module__}.{type(given).__name__}; "
                f"it must be an httpx2.{kind.__name__}"
            )
        return given

    def _openai_pool(self, kind: type[T]) -> T:
        """OpenAI's own kind of `httpx2` client, with the trust and the proxies of this client."""
        return build(kind, {"follow_redirects": False, **http_arguments(self._target)})

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

    def _no_answer(self, error: httpx2.RequestError, silence_s: float | None = None) -> NoAnswer:
        return no_answer(self._target, error, silence_s)


def _user_agent() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"bmt-client/{version('bmt-adapters')}"
    except PackageNotFoundError:
        return "bmt-client"
