"""Cross-origin requests of browsers, as far as vLLM's own layer for them does not see them.

vLLM's `--allowed-origins` and its siblings configure Starlette's CORSMiddleware, which lies inside
of this server's middleware: preflights, which carry no key, are passed on to it, and answers that
never reach it get its header here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bmt_server.api.permissions import find_route

# Headers of answers that a page reads anyway, and those that are for the browser or a proxy.
_NOT_EXPOSED = frozenset(
    (
        *(b"cache-control", b"content-language", b"content-length", b"content-type", b"expires"),
        *(b"last-modified", b"pragma", b"set-cookie", b"vary", b"connection", b"date", b"server"),
        *(b"transfer-encoding", b"x-content-type-options"),
    )
)


def is_preflight(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """True for a browser's question if it may send a request that some key may send."""
    asked = headers.get("access-control-request-method", "")
    return method == "OPTIONS" and "origin" in headers and find_route(asked, path) is not None


def allowed_origin(app: Any, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers that let a browser's page read an answer; none if its origin is not allowed."""
    origin = headers.get("origin")
    args = getattr(app.state, "args", None)
    allowed = getattr(args, "allowed_origins", None) or ()
    if origin is None or not ({"*", origin} & set(allowed)):
        return []
    credentials = bool(getattr(args, "allow_credentials", False))
    named = credentials or "*" not in allowed
    found = [(b"access-control-allow-origin", origin.encode() if named else b"*")]
    if named:
        found.append((b"vary", b"Origin"))
    if credentials:
        found.append((b"access-control-allow-credentials", b"true"))
    return found


def exposed(names: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Header that lets a page read the answer's others of these: Retry-After, the request's id."""
    shown = sorted(
        name for name in names if name not in _NOT_EXPOSED and not name.startswith(b"access-")
    )
    return [(b"access-control-expose-headers", b", ".join(shown))] if shown else []
