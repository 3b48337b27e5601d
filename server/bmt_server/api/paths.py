"""Path of a request in one spelling, the one that authorization and routing both use.

A request may come below the root path (`--root-path`) or without it, as from a proxy that strips
it, and may have slashes too many where a base URL and a path were joined. The middleware decides on
the path of `route_path` and gives the app a path that its routing resolves to the same one, so no
spelling reaches a route that it was not authorized for. No header takes part.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

import bmt_core

from bmt_server.api.asgi import Message
from bmt_server.errors import ApiError, NotFound, from_core

# `https://host/` + `/v1/models`, and `https://host/v1/` + `/models`.
_JOINED = re.compile(r"/v1/+")
_MASKS, _MODELS = "/v1/masks/", "/v1/models/"
_CHANGING = frozenset({"DELETE", "PUT", "PATCH"})
# What a path has after a mask's name.
MASK_PARTS = frozenset({"aliases", "import", "pin", "prune", "retention", "versions"})


def route_path(scope: Message) -> str:
    """The request's path below the root path, without doubled slashes around `v1` and at its end.

    Slashes between identifiers stay: an empty identifier must not make a path that means another
    one, as `/v1/masks//pin` would, and as `DELETE /v1/masks/m/` might, whose version was empty. So
    do those of a model's id, which may be a folder.
    """
    given: str = scope["path"]
    path, root = "/" + given.lstrip("/"), _root(scope)
    if root and (path == root or path.startswith(f"{root}/")):
        path = "/" + path[len(root) :].lstrip("/")
    if (joined := _JOINED.match(path)) is not None:
        path = "/v1/" + path[joined.end() :]
    kept = scope["method"] in _CHANGING or path[:-1].startswith(_MODELS)
    if path.endswith("/") and not path.endswith("//") and not kept:
        path = path[:-1] or "/"
    return path


def app_scope(scope: Message, path: str, *, method: str) -> Message:
    """The scope for the app: its routing resolves it to `path`, a result of `route_path`."""
    root = _root(scope)
    return {**scope, "method": method, "root_path": root, "path": root + path}


def _root(scope: Message) -> str:
    root: str = scope.get("root_path", "")
    return root.rstrip("/")


def encoded_slash(scope: Message, path: str) -> str | None:
    """The first identifier with an encoded slash in the path of a mask, decoded, or None.

    The decoded path may be that of another route: `acme%2Fpin` is a name and `acme/pin` is not.
    """
    raw = (scope.get("raw_path") or b"").partition(b"?")[0]
    if not path.startswith(_MASKS) or b"%2f" not in raw.lower():
        return None
    decoded = map(unquote, raw.decode("latin-1").split("/"))
    return next(part for part in decoded if "/" in part)


def denied(scope: Message, method: str, path: str) -> ApiError:
    """The error for a path without a route.

    If it is that of a mask whose name has a slash, as on the Hub, the error is about the name.
    """
    name = encoded_slash(scope, path)
    first, slash, rest = path.removeprefix(_MASKS).partition("/")
    if name is None and path.startswith(_MASKS) and slash:
        second, _, part = rest.partition("/")
        parts = MASK_PARTS if method == "POST" else {"", *MASK_PARTS}
        if second not in MASK_PARTS and part.partition("/")[0] in parts:
            name = f"{first}/{second}"
    if name is not None:
        try:
            bmt_core.validate_name(name)
        except bmt_core.InvalidName as error:
            return from_core(error)
    return NotFound(f"no route {method} {path[:200]}", code="route_not_found")
