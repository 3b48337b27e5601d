"""Errors of the HTTP surface, one tree::

ApiError                  status, type, code, param, retry_after
├── BadRequest       400
├── Unauthorized     401
├── Forbidden        403
├── NotFound         404  unknown and another tenant's alike
├── LengthRequired   411
├── Conflict         412  a lost race; never 409, which clients retry
├── PayloadTooLarge  413
├── UnsupportedMedia 415
├── Invalid          422
├── Unavailable      503  with Retry-After
│   ├── CacheFull         the local disk, not the registry
│   └── RegistryDown
├── MemoryFull       507
└── RegistryFull     507
"""

from __future__ import annotations

from typing import Any

import bmt_core


class ApiError(Exception):
    """Becomes a response in OpenAI's error shape. retry_after: seconds, or None."""

    status = 500
    type = "server_error"
    code = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.param = param
        self.retry_after = retry_after

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON body of the response."""
        return {
            "error": {
                "message": str(self),
                "type": self.type,
                "code": self.code,
                "param": self.param,
                "request_id": request_id,
            }
        }


class BadRequest(ApiError):
    """The request itself is wrong."""

    status, type, code = 400, "invalid_request_error", "bad_request"


class Unauthorized(ApiError):
    """No key, or none that is known."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(ApiError):
    """A key without the scope that the route needs."""

    status, type, code = 403, "permission_error", "scope_missing"


class NotFound(ApiError):
    """No such mask, version, alias, blob or route for this key."""

    status, type, code = 404, "not_found_error", "not_found"


class LengthRequired(ApiError):
    """An upload without Content-Length."""

    status, type, code = 411, "invalid_request_error", "length_required"


class Conflict(ApiError):
    """The precondition does not hold: somebody else was first."""

    status, type, code = 412, "conflict_error", "precondition_failed"


class PayloadTooLarge(ApiError):
    """More bytes than allowed."""

    status, type, code = 413, "invalid_request_error", "too_large"


class UnsupportedMedia(ApiError):
    """A content type or encoding that the route does not take."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class Invalid(ApiError):
    """A file that is not a valid mask of the served base."""

    status, type, code = 422, "invalid_request_error", "invalid_mask"


class RateLimited(ApiError):
    """A key asks for more than it may; the message says how much that is."""

    status, type, code = 429, "rate_limit_error", "rate_limited"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int = 1) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class Unavailable(ApiError):
    """Something the request needs is not there now; trying again helps."""

    status, type, code = 503, "server_error", "unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int = 2) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class RegistryDown(Unavailable):
    """Redis does not answer."""

    code = "registry_unavailable"


class CacheFull(Unavailable):
    """The local disk has no room for a mask that is not on it yet. Others are served."""

    code = "cache_full"


class MemoryFull(ApiError):
    """Pinned masks would take all of the workers' memory for masks."""

    status, type, code = 507, "server_error", "memory_full"


class RegistryFull(ApiError):
    """Redis is out of memory and rightly refuses to evict."""

    status, type, code = 507, "server_error", "registry_full"


def from_core(error: bmt_core.BmtError) -> ApiError:
    """The response for an error of `bmt_core` about an upload or a name."""
    if isinstance(error, bmt_core.InvalidName):
        return BadRequest(str(error), code=error.code, param=error.field)
    if isinstance(error, bmt_core.TooLarge) and error.field == "file":
        return PayloadTooLarge(str(error), code=error.code, param=error.field)
    return Invalid(str(error), code=error.code, param=error.field)
