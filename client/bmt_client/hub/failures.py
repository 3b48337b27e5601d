"""Errors of huggingface_hub as errors of this package: one line each, with the fix.

Versions of huggingface_hub raise errors of requests, httpx or httpx2, so those are known by their
package's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bmt_client._errors import (
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
    UsageError,
)

from .places import HubPlace

_TRANSPORTS = frozenset({"requests", "httpx", "httpx2", "urllib3"})
_TOKEN = "a token of the Hub (`hf auth login`, or HF_TOKEN)"
_REASON_CHARACTERS = 200


@contextmanager
def typed_errors(place: HubPlace, *, has_token: bool) -> Iterator[None]:
    """Raise BmtClientError for any exception of huggingface_hub in the block.

    place: of the messages; has_token: False adds that a private repository needs one.
    """
    try:
        yield
    except BmtClientError:
        raise
    except Exception as error:
        raise _typed(error, place, has_token) from error


def _typed(error: Exception, place: HubPlace, has_token: bool) -> BmtClientError:
    from huggingface_hub import errors

    # An upload's error is the cause of a RuntimeError, a download's that of a missing file.
    for cause in _causes(error):
        if isinstance(cause, errors.OfflineModeIsEnabled):
            known = f"{place} is not in the Hub's cache" if place.file else f"{place} names no file"
            return Unavailable(
                f"{known}, and HF_HUB_OFFLINE is set; unset it, or name a file that was fetched "
                "before",
                code="hub_offline",
                retryable=False,
            )
        if isinstance(cause, errors.LocalEntryNotFoundError):
            continue  # its cause is the reason; up to 0.36 its class is one of an answer
        if isinstance(cause, errors.HfHubHTTPError):
            return _of_answer(cause, place, has_token)
        if isinstance(cause, errors.LocalTokenNotFoundError):
            return no_token(place)
        if isinstance(cause, errors.HFValidationError):
            return UsageError(f"{place}: {first_line(cause)}", code="hub_place")
        if _root(cause) == "hf_xet" or "/xet-" in str(cause):
            return _unavailable(
                place,
                f"the Hub's Xet storage fails ({first_line(cause)})",
                "; try again, or set HF_HUB_DISABLE_XET=1 for a Hub without it",
            )
        if _root(cause) in _TRANSPORTS or _is_connection(cause):
            return Unavailable(
                f"{place}: the Hub cannot be reached ({first_line(cause)}); check the network, "
                "its proxy (HTTPS_PROXY) and HF_ENDPOINT, or try again",
                code="hub_unreachable",
            )
    if isinstance(error, OSError) and error.strerror:
        return UsageError(
            f"{place}: {error.filename or 'the cache'} cannot be read or written "
            f"({error.strerror}); set HF_HOME to a folder with space",
            code="hub_cache",
        )
    return ProtocolError(
        f"{place}: the Hub's answer is not as expected ({type(error).__name__}: "
        f"{first_line(error)}); check HF_ENDPOINT",
        code="hub_answer",
    )


def _of_answer(error: Exception, place: HubPlace, has_token: bool) -> BmtClientError:
    """The error of an answer of the Hub, by its kind and status."""
    from huggingface_hub import errors

    status = int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
    if isinstance(error, errors.GatedRepoError):
        return PermissionDenied(
            f"{place.repository} is gated: accept its conditions on its page of the Hub with the "
            "account of your token" + ("" if has_token else f"; there is no token: set {_TOKEN}"),
            status=status,
            code="hub_gated",
        )
    if isinstance(error, errors.DisabledRepoError):
        return PermissionDenied(
            f"{place.repository} is disabled by the Hub", status=status, code="hub_forbidden"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(
            f"{place.repository} has no revision {place.revision or 'main'}; see its branches and "
            "tags on its page of the Hub",
            status=status,
            code="hub_revision_unknown",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return NotFound(f"there is no {place}", status=status, code="hub_file_unknown")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        seen = "that your token may see" if has_token else f"without {_TOKEN}"
        return NotFound(
            f"the Hub has no {place.repository} {seen}; check its name",
            status=status,
            code="hub_not_found",
        )
    return _of_status(status, _said(error), place)


def _of_status(status: int, said: str, place: HubPlace) -> BmtClientError:
    if status == 401:
        return AuthenticationError(
            f"the Hub refuses the token for {place.repository}{said}; set {_TOKEN} that is valid",
            status=status,
            code="hub_unauthorized",
        )
    if status in (402, 403):
        return PermissionDenied(
            f"the Hub's token may not do this with {place.repository}{said}; use one with the "
            "right to write there",
            status=status,
            code="hub_forbidden",
        )
    if status in (409, 412):
        return Conflict(
            f"{place.repository} was changed by another commit meanwhile{said}; try again",
            status=status,
            code="hub_conflict",
        )
    if status == 413:
        return TooLarge(
            f"the Hub takes no file of this size for {place}{said}",
            status=status,
            code="hub_too_large",
        )
    if status == 429:
        return RateLimited(
            f"the Hub has had too many requests{said}; wait, and try again",
            status=status,
            code="hub_rate_limited",
        )
    if status >= 500:
        return _unavailable(place, f"the Hub answers {status}{said}", "; try again later", status)
    return Invalid(
        f"the Hub refuses {place} with {status}{said}; check its name and revision",
        status=status,
        code="hub_refused",
    )


def no_token(place: HubPlace) -> AuthenticationError:
    """The error of a push without a token."""
    return AuthenticationError(
        f"there is no token of the Hub to push to {place.repository}; run `hf auth login`, or set "
        "HF_TOKEN to one that may write",
        code="hub_no_token",
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that has one, without control characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return "".join(c if c.isprintable() else " " for c in text)[:_REASON_CHARACTERS]


def _unavailable(place: HubPlace, reason: str, fix: str, status: int | None = None) -> Unavailable:
    return Unavailable(f"{place}: {reason}{fix}", status=status, code="hub_unavailable")


def _said(error: Exception) -> str:
    """The Hub's own words, in brackets; empty without any."""
    words = getattr(error, "server_message", None)
    return f" ({first_line(ValueError(words))})" if isinstance(words, str) and words else ""


def _root(error: BaseException) -> str:
    """The package that an exception is of."""
    return type(error).__module__.partition(".")[0]


def _is_connection(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__
