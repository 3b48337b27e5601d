"""Request values shared by the registry's routes: state, tenant, names, versions, conditions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

import bmt_core
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from bmt_server.api.app_state import AppState
from bmt_server.api.masks.condition import Condition
from bmt_server.errors import BadRequest, Conflict, NotFound, PayloadTooLarge, from_core
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.names.versions import Versions
from bmt_server.registry.schemas import AliasTarget, Principal, Version

OCTETS = "application/octet-stream"
# Entries that a response is made of before other requests get their turn, a few ms.
_TURN = 50

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)


def app_state(request: Request) -> AppState:
    """The parts of this API process; the middleware has checked that they exist."""
    state: AppState = request.app.state.bmt
    return state


def principal_of(request: Request) -> Principal:
    """The request's caller."""
    principal: Principal = request.scope["bmt.principal"]
    return principal


def tenant_of(request: Request) -> str:
    """Tenant of the request's API key."""
    return principal_of(request).tenant


def check_free(state: AppState, model: str) -> None:
    """Raise BadRequest for a name of a mask by which requests reach the base model."""
    if model in state.engine.base_names:
        raise BadRequest(
            f"{model!r} is the base model's name; choose another", code="name_reserved"
        )


def valid_ref(text: str) -> str:
    """`text` as a mask's name with an optional alias or version. Raises ApiError."""
    try:
        return str(bmt_core.MaskRef.parse(text))
    except bmt_core.InvalidName as error:
        raise from_core(error) from None


def valid_name(text: str) -> str:
    """`text`, if it is a valid mask name. Raises ApiError."""
    try:
        return bmt_core.validate_name(text)
    except bmt_core.InvalidName as error:
        raise from_core(error) from None


def valid_alias(text: str) -> str:
    """`text`, if it is a valid alias. Raises ApiError."""
    try:
        return bmt_core.validate_alias(text)
    except bmt_core.InvalidName as error:
        raise from_core(error) from None


def valid_digest(text: str) -> str:
    """`text`, if it has 64 hex digits. Raises BadRequest."""
    try:
        return bmt_core.validate_digest(text)
    except bmt_core.InvalidName as error:
        raise BadRequest(str(error), code="digest_invalid", param="digest") from None


def condition_of(request: Request) -> Condition:
    """The request's If-Match. Raises BadRequest."""
    given = request.headers.getlist("if-match")
    return Condition.read(", ".join(given) if given else None)


def if_match(
    request: Request, name: str, stored: NameState | None, alias: str = bmt_core.LATEST
) -> str | None:
    """Mask digest that `name:alias` must have by the If-Match header; None without one.

    stored: the name as this server knows it. Raises BadRequest, Conflict.
    """
    given = condition_of(request)
    condition = given.of_name(tenant_of(request), name)
    if given.wanted and not condition.wanted:
        raise Conflict(f"If-Match asks for {given}, which is no version of {name[:200]}")
    entry = stored.entry(alias) if stored is not None else None
    versions = stored.versions if stored is not None else Versions()
    return condition.digest_of(entry.digest if entry is not None else None, versions)


@contextlib.contextmanager
def receiving() -> Iterator[None]:
    """Raise BadRequest, as for any other fault of a body, if the client leaves before its end."""
    try:
        yield
    except ClientDisconnect:
        raise BadRequest("the client closed the connection", code="disconnected") from None


async def read_json(request: Request, kind: type[Body], max_bytes: int = 4096) -> Body:
    """The request's body as a model; an empty one has no fields. Raises ApiError."""
    data = b""
    with receiving():
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_bytes:
                raise PayloadTooLarge(f"the body is larger than {max_bytes} bytes")
    try:
        return kind.model_validate_json(data or b"{}")
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"]))[:100]
        raise BadRequest(
            f"the body is not valid: {field + ': ' if field else ''}{wrong['msg']}",
            code="bad_json" if wrong["type"] == "json_invalid" else "bad_request",
            param=field or None,
        ) from None


def shown(request: Request, stored: NameState, version: Version) -> dict[str, Any]:
    """A version's JSON in responses."""
    return stored.response(version, app_state(request).settings.chat_template)


def mask_not_found(name: str) -> NotFound:
    """The error for a name without versions."""
    return NotFound(f"no mask {name[:200]}", code="mask_not_found")


async def state_of(request: Request, name: str) -> NameState:
    """The registry's entry of a name. Raises NotFound, RegistryDown."""
    replica, tenant = app_state(request).replica, tenant_of(request)
    valid_name(name)
    state = replica.get(tenant, name) or await replica.refresh(tenant, name)
    if state is None:
        raise mask_not_found(name)
    return state


def version_of(state: NameState, target: AliasTarget) -> Version:
    """The version that a body or path names. Raises BadRequest, NotFound."""
    if (target.digest is None) == (target.rev is None):
        raise BadRequest('give either {"digest": "…"} or {"rev": n}')
    version: Version | None
    if target.digest is not None:
        ref = bmt_core.MaskRef.parse(valid_ref(f"{state.name}@{target.digest}"))
        version = state.resolve(None, ref.digest_prefix)
    else:
        entry = state.versions.of_rev(target.rev) if target.rev is not None else None
        version = entry.version() if entry is not None else None
    if version is None:
        raise NotFound(
            f"{state.name} has no version {target.digest or target.rev}", code="version_not_found"
        )
    return version


async def in_turns(items: Sequence[T]) -> AsyncIterator[T]:
    """Yield the items of a long response, with turns of other requests in between."""
    for at, item in enumerate(items):
        if at % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        yield item
