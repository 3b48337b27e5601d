"""The outermost layer of the server: request id, key, scope, which mask answers, and the record.

A pure ASGI class, put in through vLLM's `--middleware`: an import that fails there stops the
server, where a failing plugin would only be logged. Decisions use `scope["path"]`, which is what
routing uses; a URL rebuilt from headers can be made to differ from it.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack
from typing import Any

from bmt_server.api import request_limits
from bmt_server.api.access_log import RequestRecord
from bmt_server.api.app_state import Runtime
from bmt_server.api.masks.resolver import Lease
from bmt_server.api.permissions import Route, match
from bmt_server.api.tracing import Span
from bmt_server.errors import (
    ApiError,
    BadRequest,
    Forbidden,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)
from bmt_server.registry.api_keys import SCOPES
from bmt_server.registry.schemas import DEFAULT_TENANT, Principal

logger = logging.getLogger("vllm.bmt_server")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY = 32 << 20
MAX_KEY = 256
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ANYBODY = Principal("none", DEFAULT_TENANT, frozenset(SCOPES))


class Gate:
    """ASGI middleware. Finds its runtime at `scope["app"].state.bmt`; 503 until it is there."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # No WebSocket route takes masks, and one that did not ask us must not be reachable.
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _headers(scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else f"req-{secrets.token_hex(12)}"
        method, path = scope["method"], scope["path"]
        route = match(method, path)
        record = RequestRecord(request_id, method, path, Span(method, headers))
        answer = _Answer(send, record)
        try:
            await self._admit(scope, headers, receive, answer, route)
        except ApiError as error:
            await answer.error(error)
        except Exception:
            # The app was cut short on purpose, whatever its layers made of it.
            if answer.replaced is not None:
                return
            logger.exception("Request %s failed.", request_id)
            await answer.error(ApiError("internal error; see the server's log"))
        finally:
            if record.error:
                _count(scope, record.error)
            record.end(quiet=route is not None and route.probe)

    async def _admit(
        self,
        scope: Message,
        headers: dict[str, str],
        receive: Receive,
        answer: _Answer,
        route: Route | None,
    ) -> None:
        method, path = scope["method"], scope["path"]
        if route is not None and route.scope == "open":
            await self.app(scope, receive, answer.send)
            return
        runtime: Runtime | None = getattr(scope["app"].state, "bmt", None)
        if runtime is None:
            raise Unavailable("the server is starting", code="starting")
        principal = await self._who(runtime, route, headers)
        answer.record.asked_by(principal)
        if route is None:
            raise NotFound(f"no route {method} {path[:200]}", code="route_not_found")
        if route.scope != "any" and not principal.may(route.scope):
            raise Forbidden(
                f"{method} {path[:200]} needs the scope {route.scope!r}; this key has "
                f"{', '.join(sorted(principal.scopes))}"
            )
        scope.setdefault("state", {})
        scope["bmt.principal"] = principal
        if not route.model:
            await self.app(scope, receive, answer.send)
            return
        body = await _body(headers, receive)
        request_limits.check(body)
        request_limits.salt(body, path, principal.tenant)
        with ExitStack() as held:
            if route.runs:
                held.enter_context(runtime.drain.one())
                held.enter_context(runtime.admission.one(principal.key_id))
                held.enter_context(runtime.queue.room(request_limits.sequences(body)))
            await self._answer(runtime, principal, route, body, scope, receive, answer)

    async def _answer(
        self,
        runtime: Runtime,
        principal: Principal,
        route: Route,
        body: dict[str, Any],
        scope: Message,
        receive: Receive,
        answer: _Answer,
    ) -> None:
        lease = await self._resolve(runtime, principal, body, route.runs)
        answer.record.answered_by(lease.model, lease.version)
        # What the mask needs and what the request needs before it can run, tokens above all, are
        # made at the same time; the response waits for both.
        answer.waits_for = lease
        try:
            await self.app(*_with_body(scope, receive, body, answer.record.span), answer.send)
        finally:
            lease.release()

    async def _who(
        self, runtime: Runtime, route: Route | None, headers: dict[str, str]
    ) -> Principal:
        if not runtime.settings.auth:
            return _ANYBODY
        if route is not None and runtime.settings.metrics_open and route.path.match("/metrics"):
            return _ANYBODY
        # Anthropic's clients send the key in a header of their own.
        kind, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not key or len(key) > MAX_KEY:
            raise Unauthorized("no API key; send `Authorization: Bearer bmt_…`")
        return await runtime.keys.verify(key)

    async def _resolve(
        self, runtime: Runtime, principal: Principal, body: dict[str, Any], load: bool
    ) -> Lease:
        model = body.get("model")
        if model is None:
            return Lease("", runtime.residency)
        if not isinstance(model, str):
            raise BadRequest("`model` must be a string", param="model")
        lease = await runtime.resolver.acquire(principal.tenant, model, load=load)
        body["model"] = lease.model
        return lease


class _Replaced(Exception):
    """The response was an error of ours: what the app has to say is not sent."""


class _Answer:
    """Sends the response with our headers, and errors of our own where none was begun."""

    # A mask on its way to the workers, whose failure is the response's.
    waits_for: Lease | None = None

    def __init__(self, send: Send, record: RequestRecord) -> None:
        self._send = send
        self.record = record
        self._started = False
        self.replaced: _Replaced | None = None

    async def send(self, message: Message) -> None:
        if self.replaced is not None:
            raise self.replaced
        lease, self.waits_for = self.waits_for, None
        if lease is not None:
            try:
                await lease.ready()
                self.record.span.event("mask ready")
            except ApiError as error:
                await self.error(error)
                self.replaced = _Replaced(str(error))
                raise self.replaced from None
        if message["type"] == "http.response.start":
            self._started = True
            self.record.status = message["status"]
            headers = [h for h in message.get("headers", []) if h[0].lower() != b"x-request-id"]
            headers.append((b"x-request-id", self.record.request_id.encode()))
            names = {h[0].lower() for h in headers}
            # vLLM's own 503s carry no hint, and clients retry by it.
            if message["status"] == 503 and b"retry-after" not in names:
                headers.append((b"retry-after", b"1"))
            if b"x-content-type-options" not in names:
                headers.append((b"x-content-type-options", b"nosniff"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def error(self, error: ApiError) -> None:
        self.waits_for = None
        self.record.error = error.code
        if self._started:
            raise error
        body = json.dumps(error.body(self.record.request_id)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if error.retry_after is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _count(scope: Message, code: str) -> None:
    runtime = getattr(scope["app"].state, "bmt", None)
    if runtime is not None:
        runtime.metrics.errors.labels(code).inc()


def _headers(scope: Message) -> dict[str, str]:
    """Last value of each header, names in lower case. Two Authorization headers are none."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1")
        found[name] = "" if name in ("authorization", "x-api-key") and name in found else value
    return found


async def _body(headers: dict[str, str], receive: Receive) -> dict[str, Any]:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMedia(f"content type is {kind!r}; send application/json")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY:
        raise PayloadTooLarge(f"the body is larger than {MAX_BODY} bytes")
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the client went away", code="disconnected")
        data += message.get("body", b"")
        if len(data) > MAX_BODY:
            raise PayloadTooLarge(f"the body is larger than {MAX_BODY} bytes")
        if not message.get("more_body"):
            break
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}", code="bad_json") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object", code="bad_json")
    return value


def _with_body(
    scope: Message, receive: Receive, body: dict[str, Any], span: Span
) -> tuple[Message, Receive]:
    """The same request with this body: written anew, so that what we read is what vLLM reads."""
    data = json.dumps(body).encode()
    new = {"content-length": str(len(data))} | (span.headers() if span.kept else {})
    gone = {name.encode() for name in (*new, "transfer-encoding")}
    headers = [h for h in scope["headers"] if h[0].lower() not in gone]
    headers += [(name.encode(), value.encode()) for name, value in new.items()]
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": data, "more_body": False}
        return await receive()

    return {**scope, "headers": headers}, replay
