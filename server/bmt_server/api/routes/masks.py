"""Routes of masks and their versions: list, show, delete, pin."""

from __future__ import annotations

from typing import Any

from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response

from bmt_server.api.access_log import audit
from bmt_server.api.routes.dependencies import (
    app_state,
    condition_of,
    if_match,
    in_turns,
    mask_not_found,
    principal_of,
    shown,
    state_of,
    tenant_of,
    valid_name,
    valid_ref,
    version_of,
)
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.schemas import AliasTarget

MAX_PAGE = 1000


async def list_masks(
    request: Request,
    limit: int = Query(100, ge=1, le=MAX_PAGE),
    after: str = Query("", max_length=128),
) -> dict[str, Any]:
    """Latest version of each name, sorted by name; `after` is the last name of the page before."""
    names = app_state(request).replica.catalog.page(tenant_of(request), after, limit + 1)
    page, data = names[:limit], []
    async for stored in in_turns(page):
        latest = _latest(request, stored)
        if latest is not None:  # else deleted in the turn of another request
            data.append({**latest, "versions": len(stored.versions)})
    return {
        "object": "list",
        "data": data,
        "has_more": len(names) > limit,
        "last": page[-1].name if page else None,
    }


async def show_mask(request: Request, name: str) -> JSONResponse:
    """One version: `math`, `math:prod` or `math@3f9c…`; its tag is the mask digest.

    Administrators see who published it first, and from where.
    """
    state, tenant = app_state(request), tenant_of(request)
    version = await state.resolver.find(tenant, valid_ref(name))
    condition_of(request).check(version, f"`{name[:200]}` is {version.model}")
    stored = state.replica.get(tenant, version.name)
    if stored is None:
        raise mask_not_found(name)
    answer = shown(request, stored, version)
    if principal_of(request).may("admin"):
        publisher = version.published_by
        answer["published_by"] = None if publisher is None else publisher.model_dump()
    return JSONResponse(answer, headers={"ETag": f'"{version.digest}"'})


async def delete_mask(request: Request, name: str) -> Response:
    """Delete all versions of a name. Running requests finish on their version."""
    state, tenant = app_state(request), tenant_of(request)
    stored = state.replica.get(tenant, valid_name(name))
    files = stored.versions.files() if stored else []
    await state.registry.delete_name(tenant, name, if_match(request, name, stored))
    audit(request, "delete", name, digest=stored.latest if stored else None, versions=len(files))
    await state.replica.refresh(tenant, name)
    state.housekeeper.removed(files)
    return Response(status_code=204)


async def list_versions(
    request: Request,
    name: str,
    limit: int = Query(100, ge=1, le=MAX_PAGE),
    after: int | None = Query(None, ge=0),
) -> dict[str, Any]:
    """Versions of a name, newest first; `after` is the last rev of the page before."""
    stored = await state_of(request, name)
    versions = stored.versions.page(limit + 1, after)
    page, data = versions[:limit], []
    async for entry in in_turns(page):
        data.append(shown(request, stored, entry.version()))
    return {
        "object": "list",
        "data": data,
        "has_more": len(versions) > limit,
        "last": page[-1].rev if page else None,
    }


async def delete_version(request: Request, name: str, digest: str) -> Response:
    """Delete one version that no alias points to."""
    state, stored = app_state(request), await state_of(request, name)
    version = version_of(stored, AliasTarget(digest=digest))
    condition_of(request).check(version, f"the version is {version.model}")
    await state.registry.delete_version(stored.tenant, name, version.digest)
    audit(request, "version_delete", version.model, digest=version.digest)
    await state.replica.refresh(stored.tenant, name, [version.digest])
    state.housekeeper.removed([version.file_digest])
    return Response(status_code=204)


async def pin(request: Request, name: str) -> dict[str, Any]:
    """Keep the latest version in memory."""
    return await _set_pin(request, name, True)


async def unpin(request: Request, name: str) -> dict[str, Any]:
    """Let the latest version be evicted again."""
    return await _set_pin(request, name, False)


async def _set_pin(request: Request, name: str, pinned: bool) -> dict[str, Any]:
    state, stored = app_state(request), await state_of(request, name)
    latest = stored.resolve(None, None)
    if latest is not None:
        if pinned:
            state.resolver.check_base(latest)
        if state.resolver.serves(latest):
            await state.lifecycle.pin(latest, pinned)
    await state.registry.set_pin(stored.tenant, name, pinned)
    audit(request, "pin" if pinned else "unpin", name)
    answer = _latest(request, await state.replica.refresh(stored.tenant, name, ()) or stored)
    if answer is None:
        raise mask_not_found(name)
    return answer


def _latest(request: Request, stored: NameState) -> dict[str, Any] | None:
    newest = stored.newest()
    if newest is None:
        return None
    return shown(request, stored, newest)
