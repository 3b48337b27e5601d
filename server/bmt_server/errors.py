"""Errors of the HTTP API, one tree::

ApiError                 status, type, code, param, retry_after
├── BadRequest       400
├── Unauthorized     401
├── Forbidden        403
├── NotFound         404  also for another tenant's objects
├── LengthRequired   411
├── Conflict         412  a failed precondition; not 409, which clients retry
├── PayloadTooLarge  413
├── UnsupportedMedia 415
├── Invalid          422
├── RateLimited      429  with Retry-After
├── Unavailable      503  with Retry-After
│   ├── CacheFull         the local disk, not the registry
│   ├── BlobsDown         the object store, not Redis
│   └── RegistryDown
├── MemoryFull       507
└── RegistryFull     507
"""

from __future__ import annotations

from typing import Any

import bmt_core


class ApiError(Exception):
    """Error that becomes a response in OpenAI's error form.

    code: machine-readable; param: the request's field; retry_after: seconds, or None.
    """

    status: int = 500
    type: str = "server_error"
    code: str = "internal"

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
    """Malformed request."""

    status, type, code = 400, "invalid_request_error", "bad_request"


class Unauthorized(ApiError):
    """Missing, unknown, expired or revoked API key."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(ApiError):
    """API key without the scope that the route needs."""

    status, type, code = 403, "permission_error", "scope_missing"


class NotFound(ApiError):
    """Mask, version, alias, blob or route that does not exist for this key."""

    status, type, code = 404, "not_found_error", "not_found"


class LengthRequired(ApiError):
    """Upload without Content-Length."""

    status, type, code = 411, "invalid_request_error", "length_required"


class Conflict(ApiError):
    """Failed precondition, because another writer was first."""

    status, type, code = 412, "conflict_error", "precondition_failed"


class PayloadTooLarge(ApiError):
    """Body larger than its limit."""

    status, type, code = 413, "invalid_request_error", "too_large"


class UnsupportedMedia(ApiError):
    """Content type or encoding that the route does not accept."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class Invalid(ApiError):
    """File that is not a valid mask of the served base model."""

    status, type, code = 422, "invalid_request_error", "invalid_mask"


class RateLimited(ApiError):
    """API key beyond its rate or concurrency limit."""

    status, type, code = 429, "rate_limit_error", "rate_limited"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int = 1) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class Unavailable(ApiError):
    """Temporary failure; the same request may succeed later."""

    status, type, code = 503, "server_error", "unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after: int = 2) -> None:
        super().__init__(message, code=code, retry_after=retry_after)


class RegistryDown(Unavailable):
    """Registry that does not answer, or refuses writes for now.

    detail: the cause with its address, for the operator's log; clients do not see it.
    """

    code = "registry_unavailable"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after: int = 2, detail: str = ""
    ) -> None:
        super().__init__(message, code=code, retry_after=retry_after)
        self.detail = detail


class BlobsDown(Unavailable):
    """Object store that does not answer, or refuses this server.

    detail: the cause without credentials, for the operator's log; clients do not see it.
    """

    code = "blobs_unavailable"

    def __init__(self, message: str, *, code: str | None = None, detail: str = "") -> None:
        super().__init__(message, code=code)
        self.detail = detail


class CacheFull(Unavailable):
    """Local disk without room for a further mask; masks on it are still served."""

    code = "cache_full"


class MemoryFull(ApiError):
    """Workers' mask memory that pinned masks would fill."""

    status, type, code = 507, "server_error", "memory_full"


class RegistryFull(ApiError):
    """Registry out of memory or disk; it must not evict masks."""

    status, type, code = 507, "server_error", "registry_full"


#: Status -> class with the type and code of the app's own error responses.
_BY_STATUS: dict[int, type[ApiError]] = {
    kind.status: kind
    for kind in (
        *(BadRequest, Unauthorized, Forbidden, NotFound, LengthRequired, Conflict),
        *(PayloadTooLarge, UnsupportedMedia, Invalid, RateLimited, Unavailable),
    )
}


def from_status(status: int, message: str, param: str | None) -> ApiError:
    """The API error for an error response of vLLM's app."""
    kind = _BY_STATUS.get(status, BadRequest if status < 500 else ApiError)
    # Their defaults of Retry-After are for this server's own refusals.
    error = ApiError(message, code=kind.code, param=param)
    error.status, error.type = status, kind.type
    if status == 501:
        error.code = "not_implemented"
    return error


def from_core(error: bmt_core.BmtError) -> ApiError:
    """The API error for an error of `bmt_core` about an upload or a name."""
    if isinstance(error, bmt_core.InvalidName):
        return BadRequest(str(error), code=error.code, param=error.field)
    if isinstance(error, bmt_core.TooLarge) and error.field == "file":
        return PayloadTooLarge(str(error), code=error.code, param=error.field)
    return Invalid(str(error), code=error.code, param=error.field)
