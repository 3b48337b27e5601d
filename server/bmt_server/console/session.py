"""Session of a request in the console: its cookie, its key, and the tokens of its forms."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import Response

from bmt_server.api.app_state import AppState, find_app_state
from bmt_server.api.middleware import MAX_KEY_CHARACTERS
from bmt_server.api.permissions import check_permission, find_route
from bmt_server.console.calls import Api
from bmt_server.errors import Forbidden, NotFound, Unauthorized, Unavailable
from bmt_server.registry.keys.secret import hash_key
from bmt_server.registry.schemas import Principal
from bmt_server.registry.sessions import LIFETIME_S, Session

COOKIE = "bmt_console"
# Of the form that has no session yet.
SIGN_IN_COOKIE = "bmt_console_sign_in"
_SIGN_IN = re.compile(r"[A-Za-z0-9_-]{43}")
# What browsers say of requests by this origin and by the visitor; other clients say nothing.
_OWN_SITES = ("same-origin", "none", None)


@dataclass(frozen=True)
class Visitor:
    """A signed-in key. csrf: token of the session's forms; api: the API in the key's name."""

    principal: Principal
    csrf: str
    api: Api
    until: float

    def may(self, method: str, path: str) -> bool:
        """True if the key may send a request to the API: what it may not is not offered."""
        route = find_route(method, path)
        if route is None:
            return False
        try:
            check_permission(route, self.principal, path)
        except Forbidden:
            return False
        return True


class SignedOut(Exception):
    """A request without a session: the visitor signs in first."""


class ForeignForm(Exception):
    """A form that no page of this session has sent; nothing of it is looked at."""


def console_state(request: Request) -> AppState:
    """The parts of this API process. Raises NotFound on a server without a console."""
    state = find_app_state(request.app)
    if state is None:
        raise Unavailable("the server is starting; reload this page shortly", code="starting")
    if state.settings.no_console:
        raise NotFound("this server has no console (--no-console)", code="console_off")
    if state.settings.no_auth:
        raise NotFound(
            "this server asks for no API keys (--no-auth), and the console is for those who have "
            "one: leave --no-auth out to have it",
            code="console_off",
        )
    return state


async def visitor_of(request: Request) -> Visitor:
    """The visitor by the cookie. Raises SignedOut, ForeignForm, RegistryDown."""
    state = console_state(request)
    # A page of an origin that --allowed-origins lets read the API may be of the same site, and then
    # the browser sends the cookie along; links from elsewhere navigate. Over plain HTTP a browser
    # says no more than the Origin, which only scripts and forms have.
    navigates = request.headers.get("sec-fetch-mode", "navigate") == "navigate"
    reads = not navigates and request.headers.get("sec-fetch-site") not in _OWN_SITES
    if reads or _has_foreign_origin(request):
        raise ForeignForm("pages of the console are read by itself alone")
    cookie = request.cookies.get(COOKIE, "")
    session = await state.sessions.find(cookie) if cookie else None
    if session is None:
        raise SignedOut
    try:
        principal = await state.keys.verify_hash(session.key_hash, _peer(request))
    except Unauthorized:
        raise SignedOut from None
    return _visitor(request, principal, session, cookie)


def _visitor(request: Request, principal: Principal, session: Session, cookie: str) -> Visitor:
    api = Api(request, session.key_hash)
    return Visitor(principal, _token(cookie), api, session.until)


async def sign_in(request: Request, key: str) -> str:
    """Begin a session of an API key. Returns its cookie's value. Raises ApiError."""
    state, key = console_state(request), key.strip()
    if not key or len(key) > MAX_KEY_CHARACTERS:
        raise Unauthorized("enter an API key; it begins with bmt_")
    principal = await state.keys.verify(key, _peer(request))
    return await state.sessions.open(principal.key_id, hash_key(key))


def set_cookie(request: Request, response: Response, name: str, value: str) -> None:
    """Set a cookie of the console, or remove it: then `value` is empty.

    No script reads it, no other site's request has it, and after HTTPS it does not travel without.
    """
    response.set_cookie(
        name,
        value,
        max_age=LIFETIME_S if value else 0,
        path=base_path(request),
        # Of the scope: a URL is built from the Host, which may be any text.
        secure=request.scope.get("scheme") == "https",
        httponly=True,
        samesite="strict",
    )


def base_path(request: Request) -> str:
    """Path of the console, below the server's root path."""
    root: str = request.scope.get("root_path", "")
    return f"{root}/console"


def sign_in_token(request: Request) -> tuple[str, str]:
    """Cookie and token of the form that has no session: another site can set neither."""
    cookie = request.cookies.get(SIGN_IN_COOKIE, "")
    if _SIGN_IN.fullmatch(cookie) is None:
        cookie = secrets.token_urlsafe(32)
    return cookie, _token(cookie)


def check_form(request: Request, token: str, given: str) -> None:
    """Raise ForeignForm unless the form has the token of the session's pages."""
    if not hmac.compare_digest(given.encode(), token.encode()):
        raise ForeignForm("this form is of another session; reload the page and send it again")


def check_origin(request: Request) -> None:
    """Raise ForeignForm for one of another site, by what the browser says, before its body."""
    site = request.headers.get("sec-fetch-site")
    if site not in _OWN_SITES or _has_foreign_origin(request):
        raise ForeignForm("forms are taken from pages of this console alone")


def _has_foreign_origin(request: Request) -> bool:
    """True if the browser names an origin that is not this console's."""
    origin = request.headers.get("origin")
    # Behind a proxy, the host is what the browser asked for; the scheme may be the proxy's.
    return origin is not None and _host_of(origin) != request.headers.get("host")


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # as of `http://[`
        return None


def _token(secret: str) -> str:
    return hmac.new(secret.encode(), b"bmt console form", hashlib.sha256).hexdigest()


def _peer(request: Request) -> str:
    return request.client.host if request.client is not None else ""
