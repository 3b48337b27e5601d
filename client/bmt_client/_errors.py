"""Everything the client raises, in one tree.

    BmtClientError
    ├── UsageError            nothing was sent: URL, key, name or argument cannot be used
    ├── AuthenticationError   401: no key, or one that the server does not know
    ├── PermissionDenied      403: the key lacks the scope
    ├── NotFound              404: no such mask, alias, version or blob (for this key's tenant)
    ├── Conflict              412, 409: somebody else moved the name first
    ├── Invalid               400, 411, 415, 422: the file, digest or name is not acceptable
    ├── TooLarge              413: the file is larger than the server's base model can need
    ├── RateLimited           429
    ├── Unavailable           no answer at all, 408 or 5xx
    └── ProtocolError         the answer is not a bmt-server's, or its bytes fail their digest

`retryable` says whether the same call may succeed later; those errors are raised only after the
client's own retries are used up.
"""

from __future__ import annotations

from typing import Any


class BmtClientError(Exception):
    """Base of all errors of this package.

    Attributes
    ----------
    message : what happened, with the value, the bound and the fix where there is one
    status : HTTP status, or None where no answer came
    code : snake_case identifier, the server's own where it sent one
    param : the field or argument at fault, or None
    request_id : the server's `X-Request-Id`, to be quoted to its operator
    retry_after : seconds the server asked to wait, or None
    retryable : the same call may succeed later
    attempts : how often the request was sent
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
        """JSON-able form, the one that `bmt-client --json` prints."""
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
