"""ASGI middleware: request id, authentication, authorization, mask resolution, access log.

The steps of a generation request, in order::

    find_route        allow-list of routes; anything else is denied
    authenticate      API key -> principal (key id, tenant, scopes)
    authorize         the route's scope
    admit             shutdown, limits of the key here (`admission.py`) and over all servers
                      (`usage/budgets.py`)
    read_body         within the bounds that follow from the model's context (`body/`)
    check_body        refused fields and bounds (`request_limits.py`), shape (`body/schemas.py`)
    admit             limit of the server on sequences, for routes that run the engine
    resolve           `model` -> base model or one version of a mask, held until the response ends;
                      the version that `If-Match` names, if the request has one
    app               vLLM's handlers, while the workers load the mask
    response          sent when the mask is loaded (`response/sender.py`)

A plain ASGI class, installed through vLLM's `--middleware`: an import that fails there stops the
server, and a plugin that fails is only logged. Decisions use the path that routing uses
(`paths.py`): a URL rebuilt from headers can be made to differ from it.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from bmt_server.api import request_limits
from bmt_server.api.access_log import RequestRecord
from bmt_server.api.app_state import AppState, find_app_state
from bmt_server.api.asgi import App, Message, Receive, Send, read_headers
from bmt_server.api.body.bounds import BodyBounds
from bmt_server.api.body.reader import (
    SMALL_BODY_BYTES,
    parse_json,
    read_body,
    replace_body,
)
from bmt_server.api.canary.arm import Draw
from bmt_server.api.isolation import isolate
from bmt_server.api.masks.condition import Condition
from bmt_server.api.masks.resolver import Lease
from bmt_server.api.own_requests import BACKGROUND, SESSION_KEY, sent_key
from bmt_server.api.paths import app_scope, denied, encoded_slash, route_path
from bmt_server.api.permissions import Route, check_permission, find_route
from bmt_server.api.response.cors import allowed_origin, is_preflight
from bmt_server.api.response.refusals import watch
from bmt_server.api.response.sender import ResponseSender
from bmt_server.api.tracing import Span
from bmt_server.api.usage.caller import Caller, attribute
from bmt_server.errors import ApiError, BadRequest, Unauthorized, Unavailable
from bmt_server.registry.api_keys import SCOPES
from bmt_server.registry.schemas import DEFAULT_TENANT, Principal
from bmt_server.registry.usage.counts import Counts

MAX_KEY_CHARACTERS = 256
#: Header of an answer: the version that gave it, as in the answer's `model`.
MODEL_HEADER = b"x-bmt-model"
#: Header of an answer: the precision of the base's gates, such as bf16 or int8.
PRECISION_HEADER = b"x-bmt-precision"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Principal of requests that need no key.
_ANONYMOUS = Principal("none", DEFAULT_TENANT, frozenset(SCOPES))


class RequestMiddleware:
    """Outermost layer of the app. Reads `app.state.bmt` on each request; 503 until it is set."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # No WebSocket route takes masks, and none may be reached without authentication.
            await send({"type": "websocket.close", "code": 1008})
            return
        method, path, headers = scope["method"], route_path(scope), read_headers(scope)
        route = None if encoded_slash(scope, path) else find_route(method, path)
        span = Span(method, headers)
        record = RequestRecord(_request_id(headers), method, path, span, _peer(scope))
        response = ResponseSender(send, record, watch(), allowed_origin(scope["app"], headers))
        # The app has no HEAD of most routes; the protocol drops the body.
        asked = method if route is None or method in route.methods else "GET"
        inner = app_scope(scope, path, method=asked)
        try:
            await self._handle(inner, headers, route, record, receive, response)
        except ApiError as error:
            await response.send_error(error)
        except Exception:
            # A replaced response stops the app by an exception, which its layers may have changed.
            if response.replaced:
                return
            await response.send_failure()
        finally:
            record.left = record.left or not response.complete
            state = find_app_state(scope["app"])
            if record.error and state is not None:
                state.metrics.errors.labels(record.error).inc()
            if record.arm is not None and state is not None:
                seconds = None if BACKGROUND in scope else time.monotonic() - record.started
                state.versions.answered(
                    record.arm, record.outcome, seconds, failed=bool(record.error)
                )
            if route is not None and route.names_model and state is not None:
                # Such a route's path has no variable part.
                state.metrics.http_request(path, record.outcome)
            record.end(quiet=route is not None and route.probe)

    async def _handle(
        self,
        scope: Message,
        headers: Mapping[str, str],
        route: Route | None,
        record: RequestRecord,
        receive: Receive,
        response: ResponseSender,
    ) -> None:
        if route is not None and route.scope in ("open", "session"):
            await self.app(scope, receive, response.pass_on if route.unchanged else response.send)
            return
        if is_preflight(record.method, record.path, headers):
            await self.app(scope, receive, response.send)
            return
        state = find_app_state(scope["app"])
        if state is None:
            raise Unavailable("the server is starting; retry shortly", code="starting")
        principal = await _authenticate(state, route, scope, headers, record.peer)
        record.set_principal(principal)
        route = _authorize(principal, route, scope, record)
        scope.setdefault("state", {})
        scope["bmt.principal"], scope["bmt.record"] = principal, record
        if not route.names_model:
            _check_conditions(route, record, headers)
            await self.app(scope, receive, response.send)
            return
        with ExitStack() as admitted:
            admitted.enter_context(state.shutdown.track_request())
            admitted.enter_context(state.key_limiter.admit(principal.key_id))
            budgeted = await state.budgets.admit(
                principal.key_id,
                principal.tenant,
                response.limit_headers,
                engine=route.runs_engine,
            )
            body = await _read_checked_body(state, principal, route, record.path, headers, receive)
            sequences = 0
            if route.runs_engine:
                sequences = request_limits.count_sequences(body)
                places = state.sequence_limiter.admit(sequences, background=BACKGROUND in scope)
                admitted.enter_context(places)
                if budgeted is not None:
                    schema = state.schemas.get(record.path)
                    admitted.callback(budgeted.release)
                    budgeted.reserve(
                        request_limits.most_tokens(
                            body,
                            sequences,
                            state.engine.max_model_len,
                            generates=record.path != "/v1/embeddings",
                            fields=schema.fields if schema is not None else None,
                        )
                    )
            isolate(principal.tenant)
            condition = Condition.read(headers.get("if-match"))
            # A request that the engine does not run is none of a version's figures.
            draw = Draw.of_request(body, headers, record.request_id) if route.runs_engine else None
            lease = await _resolve(state, principal, body, condition, draw, load=route.runs_engine)
            record.set_model(lease.model, lease.version)
            record.arm = lease.arm
            if lease.version is not None:
                response.model_headers.append((MODEL_HEADER, lease.model.encode()))
            if route.runs_engine and state.settings.precision:
                precision = state.settings.precision.encode()
                response.model_headers.append((PRECISION_HEADER, precision))
            caller = Caller(
                principal.key_id,
                principal.tenant,
                record.mask,
                lease.arm,
                background=BACKGROUND in scope,
            )
            attribute(caller)
            # The app prepares the request, above all its tokens, while the workers load the mask.
            response.wait_for(lease.ready)
            traced = record.span.headers() if record.span.is_recording else {}
            failed = False
            try:
                heard = _noting_departure(receive, record, response)
                replaced = replace_body(scope, heard, body, traced, state.turns)
                await self.app(*replaced, response.send)
            except Exception:
                failed = not record.status  # the answer is an error, which is still to come
                raise
            finally:
                lease.release()
                if record.status < 400 and not failed:
                    state.usage.add(caller, Counts(requests=1))
        succeeded = response.complete and record.outcome == 200 and not record.error
        if lease.copy is not None and succeeded:
            state.shadows.send(self.app, scope, body, lease.copy, caller, sequences)


def _noting_departure(receive: Receive, record: RequestRecord, response: ResponseSender) -> Receive:
    """`receive` of the app; a client that leaves before its answer is complete is noted."""

    async def noting() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect" and not response.complete:
            record.left = True
        return message

    return noting


def _request_id(headers: Mapping[str, str]) -> str:
    """The client's own id if it is short and plain, else a random one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def _peer(scope: Message) -> str:
    """Address of the client; uvicorn takes it from a header of trusted proxies alone."""
    client = scope.get("client")
    return client[0] if client else ""


async def _authenticate(
    state: AppState, route: Route | None, scope: Message, headers: Mapping[str, str], peer: str
) -> Principal:
    """Principal of the request's key. Raises Unauthorized, RateLimited, RegistryDown."""
    if SESSION_KEY in scope:
        # Of this process: no client writes into a scope.
        return await state.keys.verify_hash(scope[SESSION_KEY], peer)
    if state.settings.no_auth:
        return _ANONYMOUS
    if route is not None and state.settings.metrics_open and route.path.match("/metrics"):
        return _ANONYMOUS
    key = sent_key(headers)
    if not key or len(key) > MAX_KEY_CHARACTERS:
        raise Unauthorized("no API key; send `Authorization: Bearer bmt_…`")
    return await state.keys.verify(key, peer)


def _authorize(
    principal: Principal, route: Route | None, scope: Message, record: RequestRecord
) -> Route:
    """The route, if the principal has its scope. Raises ApiError."""
    if route is None:
        raise denied(scope, record.method, record.path)
    check_permission(route, principal, f"{record.method} {record.path[:200]}")
    return route


def _check_conditions(route: Route, record: RequestRecord, headers: Mapping[str, str]) -> None:
    """Raise BadRequest for a change with a condition that its route would leave out."""
    if record.method in ("GET", "HEAD"):
        return
    for name, shown in (("if-match", "If-Match"), ("if-none-match", "If-None-Match")):
        if name in headers and name not in route.conditions:
            raise BadRequest(
                f"{record.method} {record.path[:200]} takes no {shown}; leave out the header",
                code="condition_refused",
                param=name,
            )


async def _read_checked_body(
    state: AppState,
    principal: Principal,
    route: Route,
    path: str,
    headers: Mapping[str, str],
    receive: Receive,
) -> dict[str, Any]:
    """The body of a request that names a model, as vLLM may see it. Raises ApiError."""
    bounds = BodyBounds.of_context(state.engine.max_model_len, route.prompts)
    data = await read_body(headers, receive, bounds)
    if len(data) > SMALL_BODY_BYTES:
        await state.turns.take()
    bounds.check_structure(data)
    body = parse_json(data)
    request_limits.check_body(body, may_step_ahead=principal.may("priority"))
    schema = state.schemas.get(path)
    if schema is not None:
        # A copy, because checks of vLLM's models replace parts of what they read.
        schema.check(parse_json(data))
        request_limits.pin_fields(body, schema.fields)
    return body


async def _resolve(
    state: AppState,
    principal: Principal,
    body: dict[str, Any],
    condition: Condition,
    draw: Draw | None,
    *,
    load: bool,
) -> Lease:
    """Hold the model that the body names, and write vLLM's name of it into the body.

    Raises ApiError; Conflict if the condition does not hold.
    """
    model = body.get("model")
    if model is None:
        if not state.settings.base_by_default:
            raise BadRequest(
                "`model` is missing; name a mask, or the base model "
                f"{state.engine.base_names[0]!r}",
                code="model_missing",
                param="model",
            )
        model = state.engine.base_names[0]
    if not isinstance(model, str):
        raise BadRequest("`model` must be a string", param="model")
    lease = await state.resolver.acquire(principal.tenant, model, condition, draw=draw, load=load)
    body["model"] = lease.model
    return lease
