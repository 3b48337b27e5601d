"""Routes of aliases: movable names of versions."""

from __future__ import annotations

from typing import Any

import bmt_core
from fastapi import Request
from fastapi.responses import Response
from pydantic import ValidationError

from bmt_server.api.routes.dependencies import (
    app_state,
    if_match,
    state_of,
    valid_alias,
    version_of,
)
from bmt_server.errors import BadRequest, PayloadTooLarge
from bmt_server.registry.schemas import AliasTarget

_MAX_BODY_BYTES = 4096


async def put_alias(request: Request, name: str, alias: str) -> dict[str, Any]:
    """Point an alias to a version. Moving `latest` is a rollback."""
    state, stored = app_state(request), await state_of(request, name)
    version = version_of(stored, await _read_target(request))
    await state.registry.set_alias(
        stored.tenant, name, valid_alias(alias), version.digest, if_match(request)
    )
    stored = await state.replica.refresh(stored.tenant, name, ()) or stored
    changed = stored.versions.get(version.digest, version)
    return stored.response(changed, state.settings.chat_template)


async def delete_alias(request: Request, name: str, alias: str) -> Response:
    """Delete an alias; `latest` cannot be deleted."""
    state, stored = app_state(request), await state_of(request, name)
    if valid_alias(alias) == bmt_core.LATEST:
        raise BadRequest("'latest' cannot be removed; delete the mask", code="alias_reserved")
    await state.registry.set_alias(stored.tenant, name, alias, None, if_match(request))
    await state.replica.refresh(stored.tenant, name, ())
    return Response(status_code=204)


async def _read_target(request: Request) -> AliasTarget:
    """The version that the body names. Raises PayloadTooLarge, BadRequest."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BODY_BYTES:
            raise PayloadTooLarge(f"the body is larger than {_MAX_BODY_BYTES} bytes")
    try:
        return AliasTarget.model_validate_json(data)
    except ValidationError as error:
        raise BadRequest(f"body: {error.errors()[0]['msg']}", code="bad_json") from None
