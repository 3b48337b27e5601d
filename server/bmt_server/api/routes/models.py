"""OpenAI's and Anthropic's model routes, in place of vLLM's."""

from __future__ import annotations

from typing import Any

import bmt_core
from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse

from bmt_server.api.models.query import MAX_PAGE, parse_query
from bmt_server.api.routes import aliases, masks
from bmt_server.api.routes.dependencies import app_state, tenant_of, valid_ref
from bmt_server.errors import BadRequest

_MAX_CHARACTERS = 512


async def list_models(
    request: Request,
    kind: list[str] = Query(default=[]),  # noqa: B008
    prefix: str = Query("", max_length=_MAX_CHARACTERS),
    limit: int | None = Query(None, ge=1, le=MAX_PAGE),
    after: str | None = Query(None, max_length=_MAX_CHARACTERS),
    after_id: str | None = Query(None, max_length=_MAX_CHARACTERS),
    before_id: str | None = Query(None, max_length=_MAX_CHARACTERS),
) -> Response:
    """The base model, and this tenant's masks under their names and aliases.

    kind: base, name, alias or version, several with commas; without it all but versions. prefix: of
    ids. limit: a page, which ends with `has_more` and `last_id`; without it all. after, after_id,
    before_id: an id at which a page begins or ends, by OpenAI's name and by Anthropic's.
    """
    state = app_state(request)
    query = parse_query(state.engine.base_names, kind, prefix, limit, after or after_id, before_id)
    if request.method == "HEAD":
        return Response(media_type="application/json")
    listing = state.models.listing(tenant_of(request), query)
    return StreamingResponse(listing, media_type="application/json")


async def show_model(request: Request, model: str) -> dict[str, Any]:
    """One model of that list, or any version of a mask."""
    state = app_state(request)
    for name in (model, model.rstrip("/")):
        if name in state.engine.base_names:
            return state.models.base_card(name)
    name = model.rstrip("/")
    return state.models.card(name, await state.resolver.find_served(tenant_of(request), name))


async def delete_model(request: Request, model: str) -> dict[str, Any]:
    """Delete a mask, a version of it (`math@3f9c…`) or an alias (`math:prod`), as named.

    The scopes are those of the routes of masks, versions and aliases (`permissions.py`).
    """
    if model in app_state(request).engine.base_names:
        raise BadRequest(
            f"{model!r} is the base model; only masks can be deleted", code="base_model"
        )
    ref = bmt_core.MaskRef.parse(valid_ref(model))
    if ref.digest_prefix is not None:
        await masks.delete_version(request, ref.name, ref.digest_prefix)
    elif ref.alias is not None:
        await aliases.delete_alias(request, ref.name, ref.alias)
    else:
        await masks.delete_mask(request, ref.name)
    return {"id": model, "object": "model", "deleted": True}
