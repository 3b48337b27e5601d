"""Routes of aliases: movable names of versions."""

from __future__ import annotations

from typing import Any

import bmt_core
from fastapi import Request
from fastapi.responses import Response

from bmt_server.api.access_log import audit
from bmt_server.api.routes.dependencies import (
    app_state,
    check_free,
    if_match,
    read_json,
    shown,
    state_of,
    valid_alias,
    version_of,
)
from bmt_server.errors import BadRequest
from bmt_server.registry.schemas import AliasTarget


async def put_alias(request: Request, name: str, alias: str) -> dict[str, Any]:
    """Point an alias to a version. Moving `latest` is a rollback."""
    state, stored = app_state(request), await state_of(request, name)
    check_free(state, f"{name}:{valid_alias(alias)}")
    version = version_of(stored, await read_json(request, AliasTarget))
    expected = if_match(request, name, stored, alias)
    await state.registry.set_alias(stored.tenant, name, alias, version.digest, expected)
    audit(request, "alias", f"{name}:{alias}", version=version.model, digest=version.digest)
    stored = await state.replica.refresh(stored.tenant, name, ()) or stored
    return shown(request, stored, stored.versions.get(version.digest, version))


async def delete_alias(request: Request, name: str, alias: str) -> Response:
    """Delete an alias; `latest` cannot be deleted."""
    state, stored = app_state(request), await state_of(request, name)
    if valid_alias(alias) == bmt_core.LATEST:
        raise BadRequest("'latest' cannot be removed; delete the mask", code="alias_reserved")
    expected = if_match(request, name, stored, alias)
    await state.registry.set_alias(stored.tenant, name, alias, None, expected)
    audit(request, "alias_delete", f"{name}:{alias}", digest=stored.aliases.get(alias))
    await state.replica.refresh(stored.tenant, name, ())
    return Response(status_code=204)
