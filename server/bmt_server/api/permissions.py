"""Allow-list of routes, each with the API key scope that it needs. Every other route is denied.

An allow-list, because vLLM's app has about sixty routes and gains more with each version; some of
them pause the engine, replace its weights or load adapters without any key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from bmt_server.api.request_limits import MAX_PROMPTS
from bmt_server.errors import Forbidden
from bmt_server.registry.schemas import DEFAULT_TENANT, Principal

# open: no key; any: a key of any scope. session: pages of the console, which know their key by a
# session: whatever they show or change is a request of that key, and passes this table again.
Scope = Literal["open", "session", "any", "metrics", "infer", "train", "upload", "promote", "admin"]


@dataclass(frozen=True, slots=True)
class Route:
    """One allowed route.

    names_model: the JSON body names a model, which is resolved before vLLM sees the request. The
    limits of the key, the bounds of the body and graceful shutdown apply.
    runs_engine: the engine runs the request, so it also needs its places and a loaded mask.
    prompts: the largest number of prompts in one body, each as long as the model's context.
    probe: called every few seconds by machines; not written to the access log.
    unchanged: its responses with an error status keep their bodies.
    operator: shows or changes what belongs to other tenants, so the key must be the operator's own.
    for_monitoring: of a key of any scope, `metrics` alone included.
    conditions: headers that a change keeps to; a change on another route refuses them.
    """

    methods: frozenset[str]
    path: re.Pattern[str]
    scope: Scope
    names_model: bool = False
    runs_engine: bool = False
    probe: bool = False
    unchanged: bool = False
    prompts: int = 1
    operator: bool = False
    for_monitoring: bool = False
    conditions: frozenset[str] = frozenset()


def _route(methods: str, path: str, scope: Scope, **flags: Any) -> Route:
    return Route(frozenset(methods.split()), re.compile(path), scope, **flags)


_MATCH = frozenset({"if-match"})
_MASK = r"/v1/masks/[^/]+"
# Masks of training runs, which push and remove a version in each step.
ROLLOUT_PREFIX = "rollout-"
_ROLLOUT_MASK = rf"/v1/masks/{ROLLOUT_PREFIX}[^/]+"

_CONSOLE_FORMS = "sign-in|masks|compare|jobs|files|keys"

ROUTES: tuple[Route, ...] = (
    _route("GET", r"/(livez|readyz)", "open", probe=True, unchanged=True),
    # vLLM's, for probes and gateways that are made for it and have no key. They have no content.
    _route("GET", r"/health|/ping", "open", probe=True),
    _route("GET", r"/console(/static/[a-z.]+)?", "session", unchanged=True),
    _route("GET POST", rf"/console/({_CONSOLE_FORMS})", "session", unchanged=True),
    _route("GET", r"/console/(traffic|usage)", "session", unchanged=True),
    _route("POST", r"/console/(sign-out|compare/stream)", "session", unchanged=True),
    _route("GET", r"/console/(masks|jobs)/[^/]+", "session", unchanged=True),
    _route("POST", r"/console/(masks|jobs|files|keys)/[^/]+/[a-z]+", "session", unchanged=True),
    # Its labels are names of all tenants.
    _route("GET", r"/metrics", "metrics", probe=True, operator=True, for_monitoring=True),
    _route("GET", r"/version", "any", probe=True, for_monitoring=True),
    _route("GET", r"/v1/me", "any", for_monitoring=True),
    _route("GET", r"/v1/usage", "any"),
    _route("GET", r"/v1/limits", "admin", operator=True),
    _route("PUT DELETE", r"/v1/limits/(keys|tenants)/[^/]+", "admin", operator=True),
    _route("GET HEAD", r"/v1/models", "any"),
    _route("GET", r"/v1/models/.+", "any"),
    # By the id's form, with the scopes of the routes below: of an alias, a rollout's mask, others.
    _route("DELETE", r"/v1/models/[^/:@]+:[^/:@]+", "promote", conditions=_MATCH),
    _route(
        "DELETE", rf"/v1/models/{ROLLOUT_PREFIX}[^/:@]+(@[^/:@]+)?", "upload", conditions=_MATCH
    ),
    _route("DELETE", r"/v1/models/.+", "admin", conditions=_MATCH),
    _route("GET", r"/v1/masks", "any"),
    _route("GET", _MASK, "any"),
    _route("PUT PATCH", _MASK, "upload", conditions=_MATCH | {"if-none-match"}),
    _route("POST", _MASK + r"/import", "upload", conditions=_MATCH | {"if-none-match"}),
    # vLLM's paths with our handlers, which import from sources; `publishing/adapter_routes.py` says
    # what a key of this scope unloads.
    _route("POST", r"/v1/(load|unload)_lora_adapter", "upload"),
    # Before those of all masks: the first route that matches decides.
    _route("DELETE", _ROLLOUT_MASK, "upload", conditions=_MATCH),
    _route("DELETE", _ROLLOUT_MASK + r"/versions/[^/]+", "upload", conditions=_MATCH),
    _route("PUT DELETE", _ROLLOUT_MASK + "/retention", "upload"),
    _route("DELETE", _MASK, "admin", conditions=_MATCH),
    _route("GET", _MASK + r"/versions", "any"),
    _route("DELETE", _MASK + r"/versions/[^/]+", "admin", conditions=_MATCH),
    _route("POST", _MASK + r"/prune", "admin"),
    # An upload moves `latest` too.
    _route("PUT", _MASK + r"/aliases/latest", "upload", conditions=_MATCH),
    _route("PUT DELETE", _MASK + r"/aliases/[^/]+", "promote", conditions=_MATCH),
    _route("POST", _MASK + r"/aliases/[^/]+/(promote|rollback)", "promote", conditions=_MATCH),
    _route("GET", _MASK + r"/aliases/[^/]+", "any"),
    _route("GET", _MASK + r"/retention", "any"),
    _route("PUT DELETE", _MASK + r"/retention", "admin"),
    _route("PUT DELETE", _MASK + r"/pin", "admin"),
    # Training data, which a key for inference does not read.
    _route("GET POST", r"/v1/files", "upload"),
    _route("GET DELETE", r"/v1/files/[^/]+", "upload"),
    _route("GET", r"/v1/files/[^/]+/content", "upload"),
    # Its lines are requests of the key; files take another scope.
    _route("GET POST", r"/v1/batches", "infer"),
    _route("GET", r"/v1/batches/[^/]+", "infer"),
    _route("POST", r"/v1/batches/[^/]+/cancel", "infer"),
    _route("GET POST", r"/v1/fine_tuning/jobs", "upload"),
    _route("GET", r"/v1/fine_tuning/jobs/[^/]+(/(events|checkpoints))?", "upload"),
    _route("POST", r"/v1/fine_tuning/jobs/[^/]+/(cancel|pause|resume)", "upload"),
    # Of workers, which run jobs of all tenants.
    _route("POST", r"/v1/workers/lease", "train", operator=True),
    _route("POST", r"/v1/workers/jobs/[^/]+/(report|end)", "train", operator=True),
    _route("GET", r"/v1/workers/jobs/[^/]+/file", "train", operator=True),
    _route(
        "PUT",
        r"/v1/workers/jobs/[^/]+/(mask|results|checkpoints/[^/]+)",
        "train",
        operator=True,
    ),
    _route("GET HEAD", r"/v1/blobs/[^/]+", "any"),
    # Of the key's own tenant, unless it has the scope `operator`: `api/keys/rights.py`.
    _route("GET POST", r"/v1/keys", "admin"),
    _route("GET DELETE", r"/v1/keys/[^/]+", "admin"),
    _route("POST", r"/v1/keys/[^/]+/rotate", "admin"),
    _route(
        "POST",
        r"/v1/(chat/completions|responses|messages)",
        "infer",
        names_model=True,
        runs_engine=True,
    ),
    _route(
        "POST",
        r"/v1/(completions|embeddings)",
        "infer",
        names_model=True,
        runs_engine=True,
        prompts=MAX_PROMPTS,
    ),
    _route("POST", r"/v1/messages/count_tokens|/(tokenize|detokenize)", "infer", names_model=True),
)


def find_route(method: str, path: str) -> Route | None:
    """The route that allows this request, or None: denied. path: of `paths.route_path`.

    HEAD is allowed where GET is.
    """
    for route in ROUTES:
        allowed = method in route.methods or (method == "HEAD" and "GET" in route.methods)
        if allowed and route.path.fullmatch(path):
            return route
    return None


def check_permission(route: Route, principal: Principal, request: str) -> None:
    """Raise Forbidden if the principal may not use the route. request: its method and path."""
    monitors = principal.scopes == {"metrics"} and not route.for_monitoring
    if monitors or (route.scope != "any" and not principal.may(route.scope)):
        needed = "of masks or inference" if monitors else repr(route.scope)
        raise Forbidden(
            f"{request} needs the scope {needed}; this key has "
            f"{', '.join(sorted(principal.scopes))}"
        )
    if route.operator and principal.tenant != DEFAULT_TENANT:
        raise Forbidden(
            f"{request} shows or changes what belongs to all tenants; it needs a key of the "
            f"tenant {DEFAULT_TENANT!r}, and this one is of {principal.tenant!r}",
            code="operator_only",
        )
