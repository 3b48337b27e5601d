"""Which routes there are for clients, and the scope that each needs. What is not here is denied.

An allow-list, because vLLM's app has some sixty routes and gains more with each version; among
them are ones that pause the engine, replace its weights or load adapters without any key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Scope = Literal["open", "any", "infer", "upload", "admin"]


@dataclass(frozen=True, slots=True)
class Route:
    """One allowed route. model: the JSON body names a model that is resolved at admission;
    runs: and the engine runs it; probe: machines ask every few seconds, and nobody wants a line of
    log for it."""

    methods: frozenset[str]
    path: re.Pattern[str]
    scope: Scope
    model: bool = False
    runs: bool = False
    probe: bool = False


def _route(methods: str, path: str, scope: Scope, **more: bool) -> Route:
    return Route(frozenset(methods.split()), re.compile(path), scope, **more)


_NAME = r"/v1/masks/[^/]+"

ROUTES: tuple[Route, ...] = (
    _route("GET HEAD", r"/(livez|readyz)", "open", probe=True),
    _route("GET", r"/metrics/?", "any", probe=True),
    _route("GET HEAD", r"/health|/version|/ping", "any", probe=True),
    _route("GET", r"/v1/models(/.+)?", "any"),
    _route("GET", r"/v1/masks", "any"),
    _route("GET", _NAME, "any"),
    _route("PUT PATCH", _NAME, "upload"),
    _route("DELETE", _NAME, "admin"),
    _route("GET", _NAME + r"/versions", "any"),
    _route("DELETE", _NAME + r"/versions/[^/]+", "admin"),
    _route("PUT DELETE", _NAME + r"/aliases/[^/]+", "upload"),
    _route("PUT DELETE", _NAME + r"/pin", "admin"),
    _route("GET HEAD", r"/v1/blobs/[^/]+", "any"),
    _route(
        "POST",
        r"/v1/(chat/completions|completions|responses|messages|embeddings)",
        "infer",
        model=True,
        runs=True,
    ),
    _route("POST", r"/v1/messages/count_tokens|/(tokenize|detokenize)", "infer", model=True),
)


def match(method: str, path: str) -> Route | None:
    """The route that allows this request, or None: denied. `path` is the one routing uses."""
    for route in ROUTES:
        if method in route.methods and route.path.fullmatch(path):
            return route
    return None
