"""Routes of API keys, for administrators. A secret is in the answer that creates it, and no other.

A key that was made while its answer was lost is in the list, and can be revoked.
"""

from __future__ import annotations

from typing import Any

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from bmt_server.api.access_log import audit
from bmt_server.api.app_state import AppState
from bmt_server.api.keys import rights
from bmt_server.api.routes.dependencies import app_state, principal_of, read_json
from bmt_server.errors import BadRequest, Forbidden, NotFound
from bmt_server.registry.keys.expiry import parse_duration, parse_expiry
from bmt_server.registry.keys.record import KeyRecord
from bmt_server.registry.keys.writer import MAX_LABEL_CHARACTERS, check_known
from bmt_server.registry.schemas import Principal

MAX_PAGE = 1000
#: Keys of one tenant, expired ones included.
MAX_KEYS = 1000
_DEFAULT_OVERLAP = "1h"
_NO_STORE = {"Cache-Control": "no-store"}


class NewKey(BaseModel):
    """Body of `POST /v1/keys`. expires: a duration as in `30d`, or an ISO 8601 time with a zone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    scopes: list[str] = Field(min_length=1, max_length=16)
    tenant: str | None = Field(default=None, max_length=128)
    label: str = Field(default="", max_length=MAX_LABEL_CHARACTERS)
    expires: str | None = Field(default=None, max_length=64)


class Rotation(BaseModel):
    """Body of `POST /v1/keys/{key_id}/rotate`.

    overlap: a duration for which the old key still works. expires: of the new key; by default the
    old one's.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    overlap: str = Field(default=_DEFAULT_OVERLAP, max_length=16)
    expires: str | None = Field(default=None, max_length=64)


async def list_keys(
    request: Request,
    limit: int = Query(100, ge=1, le=MAX_PAGE),
    after: str = Query("", max_length=64),
    tenant: str | None = Query(None, max_length=128),
) -> dict[str, Any]:
    """Keys of the caller's tenant, or of `tenant` or all for an operator, sorted by id.

    after: the last id of the page before. `status` is `active`, `expired`, or `unreadable`: then
    `fault` says why every server refuses the key.
    """
    state, principal = _managed(request)
    if tenant is not None:
        rights.check_tenant(principal, tenant)
    found = [
        record
        for record in await state.keys.records()
        if record.key_id > after
        and rights.may_see(principal, record)
        and tenant in (None, record.tenant)
    ]
    found.sort(key=lambda record: record.key_id)
    page = found[:limit]
    return {
        "object": "list",
        "data": [_shown(record) for record in page],
        "has_more": len(found) > limit,
        "last": page[-1].key_id if page else None,
    }


async def create_key(request: Request) -> JSONResponse:
    """Create a key. Its secret is `key`, which is not shown again."""
    state, principal = _managed(request)
    body = await read_json(request, NewKey)
    tenant, scopes = body.tenant or principal.tenant, tuple(body.scopes)
    check_known(scopes)
    rights.check_tenant(principal, tenant)
    rights.check_scopes(principal, scopes)
    expires = None if body.expires is None else parse_expiry(body.expires)
    rights.check_expiry(principal, expires)
    await _check_number(state, tenant)
    made = await state.keys.create(
        scopes, tenant=tenant, label=body.label, expires=expires, durable=True
    )
    assert made is not None
    secret, record = made
    audit(request, "key_create", f"key {record.key_id}", **_described(record))
    return JSONResponse({**_shown(record), "key": secret}, 201, headers=_NO_STORE)


async def show_key(request: Request, key_id: str) -> dict[str, Any]:
    """One key, without its secret."""
    state, principal = _managed(request)
    record = await state.keys.get(key_id)
    if not rights.may_see(principal, record):
        raise NotFound(f"no key {key_id[:64]}", code="key_unknown")
    return _shown(record)


async def rotate_key(request: Request, key_id: str) -> JSONResponse:
    """Create a key in place of another one, which still works for `overlap`.

    The new key has the old one's tenant, scopes, label and limits. Its secret is `key`, which is
    not shown again; `replaces` is the old key.
    """
    state, principal = _managed(request)
    body = await read_json(request, Rotation)

    def check(record: KeyRecord, expires: str | None) -> None:
        rights.check_change(principal, record)
        rights.check_expiry(principal, expires)

    # Not found comes before what is wrong with the key.
    replaced = await state.keys.get(key_id)
    rights.check_change(principal, replaced)
    await _check_number(state, replaced.tenant)
    made = await state.keys.rotate(
        key_id,
        overlap_s=parse_duration(body.overlap, "overlap"),
        expires=body.expires,
        check=check,
    )
    state.keys.invalidate()
    audit(
        request,
        "key_rotate",
        f"key {key_id} to {made.new.key_id}",
        **_described(made.new),
        replaces=key_id,
        replaced_until=made.old.expires,
    )
    answer = {**_shown(made.new), "key": made.secret, "replaces": _shown(made.old)}
    return JSONResponse(answer, 201, headers=_NO_STORE)


async def revoke_key(request: Request, key_id: str) -> Response:
    """Revoke a key; every server refuses it within seconds."""
    state, principal = _managed(request)
    record = await state.keys.revoke(
        key_id, check=lambda record: rights.check_change(principal, record)
    )
    state.keys.invalidate()
    audit(request, "key_revoke", f"key {key_id}", **_described(record))
    return Response(status_code=204)


async def _check_number(state: AppState, tenant: str) -> None:
    """Raise BadRequest if a tenant has as many keys as are allowed."""
    there = sum(record.tenant == tenant for record in await state.keys.records())
    if there >= MAX_KEYS:
        raise BadRequest(
            f"tenant {tenant!r} has {there} keys, and {MAX_KEYS} are allowed; revoke some first, "
            "as those that have expired or were replaced",
            code="too_many_keys",
        )


def _managed(request: Request) -> tuple[AppState, Principal]:
    """State and caller. Raises Forbidden on a server that asks for no keys."""
    state = app_state(request)
    if state.settings.no_auth:
        # Anybody who reaches it could make keys for other servers of the registry.
        raise Forbidden(
            "a server with --no-auth manages no keys; use `bmt-server keys`, or a server that "
            "asks for keys",
            code="no_auth",
        )
    return state, principal_of(request)


def _shown(record: KeyRecord) -> dict[str, Any]:
    """A key's JSON in responses."""
    return {
        "object": "key",
        "key_id": record.key_id,
        "tenant": record.tenant,
        "scopes": list(record.scopes),
        "label": record.label,
        "created": record.created,
        "expires": record.expires,
        "status": record.status,
        **({"fault": record.fault} if record.fault else {}),
    }


def _described(record: KeyRecord) -> dict[str, Any]:
    """A key's fields in the audit log."""
    return {
        "made_key_id": record.key_id,
        "made_tenant": record.tenant,
        "made_scopes": ",".join(record.scopes),
        "made_label": record.label,
        "made_expires": record.expires,
    }
