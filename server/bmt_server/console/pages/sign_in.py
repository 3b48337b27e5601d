"""Sign-in with an API key, sign-out, and the start page."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import Response

from bmt_server.console.forms import MAX_SIGN_IN_BYTES, read_fields
from bmt_server.console.page import failed, page, places, redirect, render
from bmt_server.console.session import (
    COOKIE,
    SIGN_IN_COOKIE,
    ForeignForm,
    SignedOut,
    Visitor,
    console_state,
    set_cookie,
    sign_in,
    sign_in_token,
    visitor_of,
)
from bmt_server.errors import ApiError, Forbidden


async def show(request: Request) -> Response:
    """The form; whoever has a session already goes on."""
    try:
        console_state(request)
        try:
            await visitor_of(request)
        except SignedOut:
            return _form(request)
    except ForeignForm as refused:
        return failed(request, None, Forbidden(str(refused), code="csrf"))
    except ApiError as error:
        return failed(request, None, error)
    return redirect(request, "")


async def send(request: Request) -> Response:
    """Begin a session. A key that is not valid leads back to the form."""
    try:
        console_state(request)
    except ApiError as error:
        return failed(request, None, error)
    try:
        _, token = sign_in_token(request)
        fields = await read_fields(request, token, MAX_SIGN_IN_BYTES)
        cookie = await sign_in(request, fields.get("key", ""))
    except ForeignForm as refused:
        return _form(request, Forbidden(str(refused), code="csrf"))
    except ApiError as error:
        return _form(request, error)
    answer = redirect(request, "")
    set_cookie(request, answer, COOKIE, cookie)
    set_cookie(request, answer, SIGN_IN_COOKIE, "")
    return answer


@page
async def leave(request: Request, visitor: Visitor) -> Response:
    """End the session, on every server."""
    await read_fields(request, visitor.csrf)
    await console_state(request).sessions.end(request.cookies.get(COOKIE, ""))
    answer = redirect(request, "/sign-in")
    set_cookie(request, answer, COOKIE, "")
    return answer


@page
async def start(request: Request, visitor: Visitor) -> Response:
    """To the first page that the key may see."""
    found = places(request, visitor)
    return redirect(request, found[0].path if found else "/masks")


def _form(request: Request, error: ApiError | None = None) -> Response:
    cookie, token = sign_in_token(request)
    ended = error is None and "ended" in request.query_params
    answer = render(request, None, "sign_in.html", error=error, token=token, ended=ended)
    set_cookie(request, answer, SIGN_IN_COOKIE, cookie)
    return answer
