"""The registry's HTTP routes, and the list of models. Keys and scopes are the gate's business."""

from __future__ import annotations

import asyncio
from typing import Any

import bmt_core
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from bmt_server.api.app_state import find_app_state
from bmt_server.api.routes.dependencies import (
    OCTETS,
    etag,
    no_mask,
    runtime_of,
    state_of,
    tenant_of,
    valid_alias,
    valid_digest,
    valid_name,
    valid_ref,
    version_of,
)
from bmt_server.api.routes.uploads import patch_mask, put_mask
from bmt_server.errors import (
    BadRequest,
    NotFound,
    PayloadTooLarge,
    Unavailable,
)
from bmt_server.registry.schemas import AliasTarget, NameState

MAX_PAGE = 1000
_MAX_JSON = 4096


def build_router() -> APIRouter:
    """All routes of the registry, `/v1/models`, `/livez` and `/readyz`."""
    router = APIRouter()
    router.get("/livez")(livez)
    router.get("/readyz")(readyz)
    router.get("/v1/models")(list_models)
    router.get("/v1/models/{model:path}")(show_model)
    router.get("/v1/masks")(list_masks)
    router.put("/v1/masks/{name}")(put_mask)
    router.patch("/v1/masks/{name}")(patch_mask)
    router.get("/v1/masks/{name}")(show_mask)
    router.delete("/v1/masks/{name}", status_code=204)(delete_mask)
    router.get("/v1/masks/{name}/versions")(list_versions)
    router.delete("/v1/masks/{name}/versions/{digest}", status_code=204)(delete_version)
    router.put("/v1/masks/{name}/aliases/{alias}")(put_alias)
    router.delete("/v1/masks/{name}/aliases/{alias}", status_code=204)(delete_alias)
    router.put("/v1/masks/{name}/pin")(pin)
    router.delete("/v1/masks/{name}/pin")(unpin)
    router.api_route("/v1/blobs/{digest}", methods=["GET", "HEAD"])(blob)
    return router


async def livez(request: Request) -> Response:
    """200 while the engine is neither dead nor hung. Redis is no part of it: a restart would not
    mend it."""
    runtime = find_app_state(request.app)
    if runtime is None or await runtime.engine.healthy():
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "engine dead or hung"}, 503)


async def readyz(request: Request) -> Response:
    """200 once this server can answer requests for masks."""
    runtime = find_app_state(request.app)
    if runtime is not None and await runtime.ready():
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready"}, 503)


async def list_models(request: Request) -> Response:
    """OpenAI's list of models: the base, and this tenant's masks under all their names."""
    listing = runtime_of(request).models.listing(tenant_of(request))
    return Response(listing, media_type="application/json")


async def show_model(request: Request, model: str) -> dict[str, Any]:
    """One model of that list, or any version of a mask."""
    runtime = runtime_of(request)
    if model in runtime.engine.base_names:
        return runtime.models.base_card(model)
    return runtime.models.card(model, await runtime.resolver.find(tenant_of(request), model))


async def list_masks(
    request: Request,
    limit: int = Query(100, ge=1, le=MAX_PAGE),
    after: str = Query("", max_length=128),
) -> dict[str, Any]:
    """Latest version of each name, sorted by name; `after` is the last name of the page before."""
    states = [
        s for s in runtime_of(request).snapshot.of_tenant(tenant_of(request)) if s.name > after
    ]
    page = states[:limit]
    return {
        "object": "list",
        "data": [{**_latest(s), "versions": len(s.versions)} for s in page],
        "has_more": len(states) > limit,
        "last": page[-1].name if page else None,
    }


def _latest(state: NameState) -> dict[str, Any]:
    version = state.resolve(None, None) or state.newest_first()[0]
    return state.response(version)


async def show_mask(request: Request, name: str) -> dict[str, Any]:
    """One version: `math`, `math:prod` or `math@3f9c…`."""
    runtime, tenant = runtime_of(request), tenant_of(request)
    version = await runtime.resolver.find(tenant, valid_ref(name))
    state = runtime.snapshot.get(tenant, version.name)
    if state is None:
        raise no_mask(name)
    return state.response(version)


async def delete_mask(request: Request, name: str) -> Response:
    """Delete all versions of a name. Requests that run on one end on it."""
    runtime, tenant = runtime_of(request), tenant_of(request)
    await runtime.registry.delete_name(
        tenant, valid_name(name), etag(request.headers.get("if-match"))
    )
    await runtime.snapshot.refresh(tenant, name)
    return Response(status_code=204)


async def list_versions(request: Request, name: str) -> dict[str, Any]:
    """Versions of a name, newest first."""
    state = await state_of(request, name)
    return {"object": "list", "data": [state.response(v) for v in state.newest_first()]}


async def delete_version(request: Request, name: str, digest: str) -> Response:
    """Delete one version that no alias points at."""
    state = await state_of(request, name)
    version = version_of(state, AliasTarget(digest=digest))
    await runtime_of(request).registry.delete_version(state.tenant, name, version.digest)
    await runtime_of(request).snapshot.refresh(state.tenant, name)
    return Response(status_code=204)


async def put_alias(request: Request, name: str, alias: str) -> dict[str, Any]:
    """Point an alias at a version. Moving `latest` is a rollback."""
    state = await state_of(request, name)
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_JSON:
            raise PayloadTooLarge(f"the body is larger than {_MAX_JSON} bytes")
    try:
        target = AliasTarget.model_validate_json(data)
    except ValidationError as error:
        raise BadRequest(f"body: {error.errors()[0]['msg']}", code="bad_json") from None
    version = version_of(state, target)
    runtime = runtime_of(request)
    await runtime.registry.set_alias(
        state.tenant,
        name,
        valid_alias(alias),
        version.digest,
        etag(request.headers.get("if-match")),
    )
    state = await runtime.snapshot.refresh(state.tenant, name) or state
    return state.response(state.versions.get(version.digest, version))


async def delete_alias(request: Request, name: str, alias: str) -> Response:
    """Remove an alias; `latest` cannot be removed."""
    state = await state_of(request, name)
    if valid_alias(alias) == bmt_core.LATEST:
        raise BadRequest("'latest' cannot be removed; delete the mask", code="alias_reserved")
    runtime = runtime_of(request)
    await runtime.registry.set_alias(
        state.tenant, name, alias, None, etag(request.headers.get("if-match"))
    )
    await runtime.snapshot.refresh(state.tenant, name)
    return Response(status_code=204)


async def pin(request: Request, name: str) -> dict[str, Any]:
    """Keep the latest version in memory."""
    return await _pin(request, name, True)


async def unpin(request: Request, name: str) -> dict[str, Any]:
    """Let it be evicted again."""
    return await _pin(request, name, False)


async def _pin(request: Request, name: str, pinned: bool) -> dict[str, Any]:
    runtime, state = runtime_of(request), await state_of(request, name)
    latest = state.resolve(None, None)
    if latest is not None:
        await runtime.lifecycle.pin(latest, pinned)
    await runtime.registry.set_pin(state.tenant, name, pinned)
    state = await runtime.snapshot.refresh(state.tenant, name) or state
    return _latest(state)


async def blob(request: Request, digest: str) -> Response:
    """A file's bytes, or with HEAD whether it is here, for tenants that have a version of it."""
    runtime = runtime_of(request)
    valid_digest(digest)
    mine = any(
        v.file_digest == digest
        for s in runtime.snapshot.of_tenant(tenant_of(request))
        for v in s.versions.values()
    )
    if not mine:
        raise NotFound(f"no blob {digest[:12]}…", code="blob_unknown")
    headers = {"ETag": f'"{digest}"', "X-Content-Type-Options": "nosniff"}
    if request.method == "HEAD":
        size = await runtime.registry.blob_size(digest)
        if not size:
            raise NotFound(f"no blob {digest[:12]}…", code="blob_unknown")
        return Response(headers={**headers, "Content-Length": str(size)}, media_type=OCTETS)
    size = await runtime.registry.blob_size(digest)
    data = bytes(await runtime.registry.blob(digest, size))
    if await asyncio.to_thread(bmt_core.file_digest, data) != digest:
        raise Unavailable(
            f"blob {digest[:12]}… in the registry is damaged; upload the mask again",
            code="blob_damaged",
        )
    return Response(data, headers=headers, media_type=OCTETS)
