"""Requests of this server to itself in the name of a key, as of the console and of batches.

They pass the app from its outermost layer: table of routes, scopes, tenants, limits, audit and
access log are those of any other client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from fastapi import Request

from bmt_server.api.asgi import Message, read_headers
from bmt_server.registry.keys.secret import hash_key

#: Entry of an ASGI scope: hash of the key in whose name this process makes a request.
SESSION_KEY = "bmt.session_key"
#: Entry of an ASGI scope: no client waits for the answer, so its times are none of the server's.
BACKGROUND = "bmt.background"


def own_scope(
    method: str,
    path: str,
    headers: Sequence[tuple[bytes, bytes]],
    *,
    key_hash: str | None,
    query: str = "",
    outer: Mapping[str, Any] | None = None,
    background: bool = False,
) -> Message:
    """ASGI scope of a request to this server. path: with its parts encoded.

    key_hash: SHA-256 of the key; None on a server without keys. outer: scope of the request that it
    is made for. background: no client waits for the answer.
    """
    outer = outer or {}
    root = outer.get("root_path", "")
    scope = {
        "type": "http",
        "asgi": outer.get("asgi", {"version": "3.0"}),
        "http_version": "1.1",
        "method": method,
        "scheme": outer.get("scheme", "http"),
        "path": root + path,
        "raw_path": quote(root + path).encode(),
        "query_string": query.encode(),
        "root_path": root,
        "headers": headers,
        "client": outer.get("client"),
        "server": outer.get("server"),
    }
    if key_hash is not None:
        scope[SESSION_KEY] = key_hash
    if background:
        scope[BACKGROUND] = True
    return scope


def key_hash_of(request: Request) -> str:
    """SHA-256 of the key of a request that the middleware has verified; empty without one."""
    session = request.scope.get(SESSION_KEY)
    if session is not None:
        return str(session)
    key = sent_key(read_headers(request.scope))
    return hash_key(key) if key else ""


def sent_key(headers: Mapping[str, str]) -> str:
    """The key that a request sends, empty without one."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    # Anthropic's clients send the key in `x-api-key`.
    return key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
