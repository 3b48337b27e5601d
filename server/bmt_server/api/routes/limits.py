"""Limits of keys and tenants, for the operator."""

from __future__ import annotations

from typing import Any

import bmt_core
from fastapi import Request

from bmt_server.api.access_log import audit
from bmt_server.api.routes.dependencies import app_state, read_json
from bmt_server.errors import BadRequest, NotFound
from bmt_server.registry.usage.limits import KINDS, Kind, Limits


async def show(request: Request) -> dict[str, Any]:
    """Limits by the server's flags, and those of single keys and tenants in their place."""
    store = app_state(request).limit_store
    stored = await store.stored()
    return {
        "object": "limits",
        "defaults": {f"{kind}s": store.of(kind, "").to_dict() for kind in KINDS},
        **{
            f"{kind}s": {
                n: found.to_dict() for (k, n), found in sorted(stored.items()) if k == kind
            }
            for kind in KINDS
        },
    }


async def put(request: Request, kind: str, name: str) -> dict[str, Any]:
    """Set all limits of a key, by its id, or a tenant; those that are left out are the defaults.

    0: no limit. Every server has them within seconds.
    """
    found = _kind(kind)
    _check_name(found, name)
    limits = await read_json(request, Limits)
    store = app_state(request).limit_store
    await store.set(found, name, limits)
    audit(request, "limits", f"{kind}/{name}", **limits.to_dict())
    return {"object": "limits", "kind": kind, "name": name, **limits.to_dict()}


async def delete(request: Request, kind: str, name: str) -> None:
    """Remove the limits of a key or a tenant, so that the server's flags count."""
    await app_state(request).limit_store.clear(_kind(kind), name)
    audit(request, "limits", f"{kind}/{name}", default=True)


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if text == f"{kind}s":
            return kind
    raise NotFound(f"no limits of {text[:100]}; there are those of keys and tenants")


def _check_name(kind: Kind, name: str) -> None:
    """Raise BadRequest for what cannot be the id of a key or a tenant's name."""
    if kind == "key":
        if not (name.isascii() and name.isalnum() and len(name) <= 64):
            raise BadRequest(f"{name[:100]!r} is no id of a key", param="name")
        return
    try:
        bmt_core.validate_name(name)
    except bmt_core.InvalidName as error:
        raise BadRequest(f"tenant: {error}", code=error.code, param="name") from None
