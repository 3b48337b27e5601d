"""Exceptions of the client, in one tree.

    BmtClientError
    ├── UsageError            invalid URL, key, name or argument; nothing was sent
    ├── AuthenticationError   401: no key, or an unknown one
    ├── PermissionDenied      403: the key lacks the scope
    ├── NotFound              404: no such mask, alias, version or blob in the key's tenant
    ├── Conflict              412, 409: another client changed the name first
    ├── Invalid               400, 411, 415, 422: invalid file, digest or name
    ├── TooLarge              413: larger than any mask of the server's base model
    ├── RateLimited           429: too many requests
    ├── Unavailable           no answer, 408 or 5xx
    └── ProtocolError         not a bmt-server's answer, or bytes that fail their digest

`retryable` is True if the same call may succeed later. Such errors are raised after the client's
own retries are exhausted.
"""

from __future__ import annotations

from typing import Any


class BmtClientError(Exception):
    """Base class of all errors of this package.

    Attributes
    ----------
    message : description with the value, the bound and the fix
    status : HTTP status, or None without an answer
    code : snake_case identifier, from the server if it sent one
    param : the field or argument at fault, or None
    request_id : the server's `X-Request-Id`, for its operator
    retry_after : seconds to wait as the server asked, or None
    retryable : the same call may succeed later
    attempts : number of times the request was sent
    """

    default_code = "error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code or self.default_code
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after
        self.attempts = 1
        if retryable is not None:
            self.retryable = retryable

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, status={self.status}, code={self.code!r})"

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict, as `bmt-client --json` prints it."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "status": self.status,
            "code": self.code,
            "param": self.param,
            "request_id": self.request_id,
            "retryable": self.retryable,
        }


class UsageError(BmtClientError):
    default_code = "usage"


class AuthenticationError(BmtClientError):
    default_code = "unauthorized"


class PermissionDenied(BmtClientError):
    default_code = "forbidden"


class NotFound(BmtClientError):
    default_code = "not_found"


class Conflict(BmtClientError):
    default_code = "conflict"


class Invalid(BmtClientError):
    default_code = "invalid"


class TooLarge(BmtClientError):
    default_code = "too_large"


class RateLimited(BmtClientError):
    default_code = "rate_limited"
    retryable = True


class Unavailable(BmtClientError):
    default_code = "unavailable"
    retryable = True


class ProtocolError(BmtClientError):
    default_code = "protocol"
