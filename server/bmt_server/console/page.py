"""Pages of the console: templates, headers, and the frame that every handler shares."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from bmt_server.api.app_state import find_app_state
from bmt_server.console.session import (
    COOKIE,
    ForeignForm,
    SignedOut,
    Visitor,
    base_path,
    visitor_of,
)
from bmt_server.errors import ApiError, Forbidden

# Nothing but files of this server: no script or style in the page itself, no frame around it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer`, a form's Origin would be `null`.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
Handler = Callable[[Request, Visitor], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class _Place:
    """An entry of the navigation, for keys that may send a request. needs: a part of the state."""

    title: str
    path: str
    method: str
    api: str
    needs: str = ""


_PLACES = (
    _Place("Masks", "/masks", "GET", "/v1/masks"),
    _Place("Side by side", "/compare", "POST", "/v1/chat/completions"),
    _Place("Jobs", "/jobs", "GET", "/v1/fine_tuning/jobs", "jobs"),
    _Place("Files", "/files", "GET", "/v1/files", "files"),
    _Place("Traffic", "/traffic", "GET", "/metrics"),
    _Place("Usage", "/usage", "GET", "/v1/usage"),
    _Place("Keys", "/keys", "GET", "/v1/keys"),
)
# What a redirect after a change says; the URL has the word alone, so that no text comes from it.
DONE = {
    "uploaded": "The mask is published.",
    "unchanged": "The newest version has these bits already.",
    "alias": "The alias is moved.",
    "rolled-back": "The mask is rolled back: new requests get the version that you chose.",
    "ended": "Canary and shadow have ended: all requests get the alias's main version.",
    "removed": "The alias is removed.",
    "created": "The job waits for a worker.",
    "cancel": "The job is cancelled.",
    "pause": "The job is paused.",
    "resume": "The job waits for a worker again.",
    "file": "The file is checked and kept.",
    "deleted": "The file is deleted.",
    "revoked": "The key is revoked: every server refuses it within seconds.",
}


def page(handler: Handler) -> Endpoint:
    """An endpoint for visitors with a session; others sign in first. Errors are pages too."""

    @functools.wraps(handler)
    async def endpoint(request: Request) -> Response:
        visitor = None
        try:
            visitor = await visitor_of(request)
            return await handler(request, visitor)
        except SignedOut:
            return _to_sign_in(request)
        except ForeignForm as refused:
            return failed(request, visitor, Forbidden(str(refused), code="csrf"))
        except ApiError as error:
            if error.status == 401 and visitor is not None:
                return _to_sign_in(request)  # revoked a moment ago
            return failed(request, visitor, error)

    return endpoint


def render(
    request: Request,
    visitor: Visitor | None,
    template: str,
    *,
    status: int = 200,
    error: ApiError | None = None,
    **context: Any,
) -> HTMLResponse:
    """A page. error: of the form that the visitor sent, shown above the page's content."""
    text = _TEMPLATES.get_template(template).render(
        visitor=visitor,
        csrf=visitor.csrf if visitor is not None else "",
        base=base_path(request),
        here=request.scope["path"].removeprefix(base_path(request)),
        places=places(request, visitor),
        done=DONE.get(request.query_params.get("done", "")) if error is None else None,
        error=error,
        **context,
    )
    answer = HTMLResponse(text, error.status if error is not None else status, headers=HEADERS)
    if error is not None and error.retry_after is not None:
        answer.headers["Retry-After"] = str(error.retry_after)
    return answer


def failed(request: Request, visitor: Visitor | None, error: ApiError) -> HTMLResponse:
    """The page of an error that leaves nothing else to show."""
    return render(request, visitor, "error.html", error=error)


def redirect(request: Request, path: str, done: str = "") -> RedirectResponse:
    """To a page of the console after a form; reloading that page sends nothing again."""
    url = f"{base_path(request)}{path}" + (f"?done={done}" if done else "")
    return RedirectResponse(url, 303, headers=HEADERS)


def _to_sign_in(request: Request) -> Response:
    if request.headers.get("sec-fetch-dest") == "empty":  # of a script, which reloads the page
        return Response("sign in again\n", 401, headers=HEADERS, media_type="text/plain")
    again = "" if COOKIE not in request.cookies else "?ended=1"
    return RedirectResponse(f"{base_path(request)}/sign-in{again}", 303, headers=HEADERS)


def places(request: Request, visitor: Visitor | None) -> list[_Place]:
    """Entries of the navigation: pages with something that the key may see."""
    if visitor is None:
        return []
    state = find_app_state(request.app)
    return [
        place
        for place in _PLACES
        if visitor.may(place.method, place.api)
        and (not place.needs or getattr(state, place.needs) is not None)
    ]


def _when(value: Any) -> str:
    """A time in UTC, of seconds since 1970 or ISO 8601."""
    try:
        if isinstance(value, int | float):
            moment = datetime.fromtimestamp(value, UTC)
        else:
            moment = datetime.fromisoformat(str(value)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return str(value)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _size(value: float) -> str:
    """Bytes in a readable unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _figure(value: float) -> str:
    return f"{value:.4g}"


_TEMPLATES = Environment(
    loader=PackageLoader("bmt_server.console"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters.update(when=_when, size=_size, count=_count, figure=_figure)
