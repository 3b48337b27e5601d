"""OpenAI's model routes, in place of vLLM's."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from bmt_server.api.routes.dependencies import app_state, tenant_of


async def list_models(request: Request) -> StreamingResponse:
    """The base model, and this tenant's masks under all their names."""
    listing = app_state(request).models.listing(tenant_of(request))
    return StreamingResponse(listing, media_type="application/json")


async def show_model(request: Request, model: str) -> dict[str, Any]:
    """One model of that list, or any version of a mask."""
    state = app_state(request)
    if model in state.engine.base_names:
        return state.models.base_card(model)
    return state.models.card(model, await state.resolver.find_served(tenant_of(request), model))
