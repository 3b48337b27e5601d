"""The registry's HTTP routes, and the list of models. Keys and scopes are the gate's business."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import bmt_core
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from bmt_server.api.errors import (
    BadRequest,
    Conflict,
    LengthRequired,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMedia,
    from_core,
)
from bmt_server.api.runtime import Runtime
from bmt_server.api.schemas import AliasTarget, BaseRef, NameState, Principal, Version
from bmt_server.blob import BlobError, read_blob

OCTETS = "application/octet-stream"
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


def _runtime(request: Request) -> Runtime:
    return request.app.state.bmt


def _tenant(request: Request) -> str:
    principal: Principal = request.scope["bmt.principal"]
    return principal.tenant


async def livez(request: Request) -> Response:
    """200 while the engine is not dead. Redis is no part of it: a restart would not mend it."""
    runtime = getattr(request.app.state, "bmt", None)
    if runtime is None or await runtime.engine.healthy():
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "engine dead"}, 503)


async def readyz(request: Request) -> Response:
    """200 once this server can answer requests for masks."""
    runtime = getattr(request.app.state, "bmt", None)
    if runtime is not None and await runtime.ready():
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready"}, 503)


async def list_models(request: Request) -> Response:
    """OpenAI's list of models: the base, and this tenant's masks under all their names."""
    listing = _runtime(request).models.listing(_tenant(request))
    return Response(listing, media_type="application/json")


async def show_model(request: Request, model: str) -> dict[str, Any]:
    """One model of that list, or any version of a mask."""
    runtime = _runtime(request)
    if model in runtime.engine.base_names:
        return runtime.models.base_card(model)
    return runtime.models.card(model, await runtime.resolver.find(_tenant(request), model))


async def list_masks(
    request: Request,
    limit: int = Query(100, ge=1, le=MAX_PAGE),
    after: str = Query("", max_length=128),
) -> dict[str, Any]:
    """Latest version of each name, sorted by name; `after` is the last name of the page before."""
    states = [s for s in _runtime(request).snapshot.of_tenant(_tenant(request)) if s.name > after]
    page = states[:limit]
    return {
        "object": "list",
        "data": [{**_latest(s), "versions": len(s.versions)} for s in page],
        "has_more": len(states) > limit,
        "last": page[-1].name if page else None,
    }


def _latest(state: NameState) -> dict[str, Any]:
    version = state.find(None, None) or state.newest_first()[0]
    return state.answer(version)


async def show_mask(request: Request, name: str) -> dict[str, Any]:
    """One version: `math`, `math:prod` or `math@3f9c…`."""
    runtime, tenant = _runtime(request), _tenant(request)
    version = await runtime.resolver.find(tenant, _ref(name))
    state = runtime.snapshot.get(tenant, version.name)
    if state is None:
        raise _no_mask(name)
    return state.answer(version)


def _ref(text: str) -> str:
    try:
        return str(bmt_core.MaskRef.parse(text))
    except bmt_core.InvalidName as error:
        raise from_core(error) from None


def _name(text: str) -> str:
    try:
        return bmt_core.validate_name(text)
    except bmt_core.InvalidName as error:
        raise from_core(error) from None


def _alias(text: str) -> str:
    try:
        return bmt_core.validate_alias(text)
    except bmt_core.InvalidName as error:
        raise from_core(error) from None


def _no_mask(name: str) -> NotFound:
    return NotFound(f"no mask {name[:200]}", code="mask_not_found")


async def _state(request: Request, name: str) -> NameState:
    runtime, tenant = _runtime(request), _tenant(request)
    _name(name)
    state = runtime.snapshot.get(tenant, name) or await runtime.snapshot.refresh(tenant, name)
    if state is None:
        raise _no_mask(name)
    return state


async def put_mask(
    request: Request,
    name: str,
    alias: list[str] = Query(default=[]),  # noqa: B008
    digest: str | None = Query(default=None),
    resident: bool = Query(default=False),
) -> JSONResponse:
    """Publish a version from the bytes of a `.bmt` file. 201 where it is new, else 200.

    It is ready on this server's disk then; `resident` also loads it into the workers' memory, in
    the background.
    """
    runtime, tenant = _runtime(request), _tenant(request)
    _name(name)
    if name in runtime.engine.base_names:
        raise BadRequest(f"{name!r} is the base model's name; choose another", code="name_reserved")
    aliases = [_alias(a) for a in alias if a != bmt_core.LATEST]
    async with runtime.uploads:
        data = await _upload(request, runtime.max_upload_bytes)
        stated = _stated_digest(request, digest)
        version, mask = await asyncio.to_thread(_read, runtime, tenant, name, data, stated)
        return await _publish(request, version, mask, data, aliases=aliases, resident=resident)


async def patch_mask(
    request: Request,
    name: str,
    parent: str = Query(),
    digest: str = Query(),
    resident: bool = Query(default=False),
) -> JSONResponse:
    """Publish a version that differs from `parent`, a version of this name, by some positions.

    The body is a `.bmt` file of the flips: positions that one of the two deletes and the other
    keeps. digest: the mask digest that must come of it, else 412 and nothing is stored. Made for
    a trainer that changes a few positions each step; conditions are as for PUT.
    """
    runtime, state = _runtime(request), await _state(request, name)
    before = _pick(state, AliasTarget(digest=parent))
    wanted = _mask_digest(digest)
    async with runtime.uploads:
        flips = await _upload(request, runtime.max_upload_bytes)
        blob = await runtime.registry.blob(before.file_digest, before.bytes)
        version, mask, data = await asyncio.to_thread(_flip, runtime, before, blob, flips)
        if mask.digest != wanted:
            raise Conflict(
                f"{before.model} with these flips is {mask.digest[:12]} and the request states "
                f"{wanted[:12]}; upload the whole mask",
                code="digest_mismatch",
            )
        return await _publish(request, version, mask, data, aliases=(), resident=resident)


def _flip(
    runtime: Runtime, before: Version, blob: bytearray, flips: bytes
) -> tuple[Version, bmt_core.Mask, bytes]:
    """The version that comes of flipping positions of `before`. Raises ApiError."""
    fingerprint = runtime.settings.fingerprint
    try:
        old = read_blob(blob, before.source, fingerprint, runtime.limits)
    except BlobError as error:
        raise Unavailable(f"{before.model}: {error}", code=error.code) from None
    try:
        change = bmt_core.decode(flips, limits=runtime.limits, expect_base=fingerprint)
        mask = bmt_core.symmetric_difference(old, change, dict(change.metadata))
    except bmt_core.BmtError as error:
        raise from_core(error) from None
    data = bmt_core.encode(mask)
    version, mask = _read(runtime, before.tenant, before.name, data, None)
    return version, mask, data


def _mask_digest(text: str) -> str:
    try:
        return bmt_core.validate_digest(text)
    except bmt_core.InvalidName as error:
        raise BadRequest(str(error), code="digest_invalid", param="digest") from None


async def _publish(
    request: Request,
    version: Version,
    mask: bmt_core.Mask,
    data: bytes,
    *,
    aliases: Sequence[str],
    resident: bool,
) -> JSONResponse:
    """Store a checked version under the request's conditions, and answer with it."""
    runtime, name = _runtime(request), version.name
    outcome, _ = await runtime.registry.publish(
        version,
        data,
        aliases=aliases,
        if_match=_etag(request.headers.get("if-match")),
        if_none_match=request.headers.get("if-none-match") == "*",
    )
    state = await runtime.snapshot.refresh(version.tenant, name)
    stored = state.versions.get(version.digest) if state else None
    if stored is not None:
        await runtime.keep(stored, mask, resident=resident)
    runtime.metrics.uploads.labels(outcome).inc()
    if state is None or stored is None:
        raise Conflict(f"{name} was deleted while it was published", code="deleted")
    return JSONResponse(
        {**state.answer(stored), "outcome": outcome},
        201 if outcome == "created" else 200,
        headers={"ETag": f'"{stored.digest}"'},
    )


async def _upload(request: Request, bound: int) -> bytes:
    kind = request.headers.get("content-type", OCTETS).partition(";")[0].strip().lower()
    if kind != OCTETS:
        raise UnsupportedMedia(f"content type is {kind!r}; send the file itself as {OCTETS}")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMedia("a .bmt file is compressed already; send it without encoding")
    length = request.headers.get("content-length", "")
    if not length.isascii() or not length.isdigit():
        raise LengthRequired("an upload needs Content-Length")
    if int(length) > bound:
        raise _too_large(int(length), bound)
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > bound:
            raise _too_large(len(data), bound)
    return bytes(data)


def _too_large(size: int, bound: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the file is {size} bytes; a mask of this base has at most {bound}", param="file"
    )


def _stated_digest(request: Request, query: str | None) -> str | None:
    """The file digest that the client states, 64 hex digits, or None. Raises BadRequest."""
    if query is not None:
        try:
            return bmt_core.validate_digest(query.removeprefix("sha256:"))
        except bmt_core.InvalidName as error:
            raise BadRequest(str(error), code="digest_invalid", param="digest") from None
    header = request.headers.get("content-digest")
    if header is None:
        return None
    for part in header.split(","):
        algorithm, _, value = part.strip().partition("=")
        if algorithm.lower() == "sha-256":
            try:
                raw = base64.b64decode(value.strip(":"), validate=True)
            except binascii.Error:
                raw = b""
            if len(raw) == 32:
                return raw.hex()
    raise BadRequest(
        "Content-Digest must hold sha-256=:<base64>:", code="digest_invalid", param="digest"
    )


def _read(
    runtime: Runtime, tenant: str, name: str, data: bytes, stated: str | None
) -> tuple[Version, bmt_core.Mask]:
    file_digest = hashlib.sha256(data).hexdigest()
    if stated is not None and stated != file_digest:
        raise BadRequest(
            f"the body's SHA-256 is {file_digest[:12]}… and the request states {stated[:12]}…; "
            "it was damaged on the way, send it again",
            code="digest_mismatch",
            param="digest",
        )
    try:
        mask = bmt_core.decode(
            data, limits=runtime.limits, expect_base=runtime.settings.fingerprint
        )
    except bmt_core.BmtError as error:
        raise from_core(error) from None
    total = sum(rows * cols for rows, cols in runtime.settings.gates.values())
    version = Version(
        name=name,
        tenant=tenant,
        digest=mask.digest,
        file_digest=file_digest,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        bytes=len(data),
        zeros=mask.zeros,
        density=mask.zeros / total,
        base=BaseRef(model_id=mask.base.model_id, fingerprint=mask.base.fingerprint),
        metadata=dict(mask.metadata),
    )
    return version, mask


def _etag(value: str | None) -> str | None:
    """The digest in an If-Match header; None where there is none."""
    if value is None:
        return None
    digest = value.strip().removeprefix("W/").strip('"')
    try:
        return bmt_core.validate_digest(digest)
    except bmt_core.InvalidName as error:
        raise BadRequest(f"If-Match: {error}", code="digest_invalid", param="if-match") from None


async def delete_mask(request: Request, name: str) -> Response:
    """Delete all versions of a name. Requests that run on one end on it."""
    runtime, tenant = _runtime(request), _tenant(request)
    await runtime.registry.delete_name(tenant, _name(name), _etag(request.headers.get("if-match")))
    await runtime.snapshot.refresh(tenant, name)
    return Response(status_code=204)


async def list_versions(request: Request, name: str) -> dict[str, Any]:
    """Versions of a name, newest first."""
    state = await _state(request, name)
    return {"object": "list", "data": [state.answer(v) for v in state.newest_first()]}


async def delete_version(request: Request, name: str, digest: str) -> Response:
    """Delete one version that no alias points at."""
    state = await _state(request, name)
    version = _pick(state, AliasTarget(digest=digest))
    await _runtime(request).registry.delete_version(state.tenant, name, version.digest)
    await _runtime(request).snapshot.refresh(state.tenant, name)
    return Response(status_code=204)


def _pick(state: NameState, target: AliasTarget) -> Version:
    """The version that a body or path means. Raises BadRequest, NotFound."""
    if (target.digest is None) == (target.rev is None):
        raise BadRequest('give either {"digest": "…"} or {"rev": n}')
    found: Version | None
    if target.digest is not None:
        ref = bmt_core.MaskRef.parse(_ref(f"{state.name}@{target.digest}"))
        found = state.find(None, ref.digest_prefix)
    else:
        found = next((v for v in state.versions.values() if v.rev == target.rev), None)
    if found is None:
        raise NotFound(
            f"{state.name} has no version {target.digest or target.rev}", code="version_not_found"
        )
    return found


async def put_alias(request: Request, name: str, alias: str) -> dict[str, Any]:
    """Point an alias at a version. Moving `latest` is a rollback."""
    state = await _state(request, name)
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_JSON:
            raise PayloadTooLarge(f"the body is larger than {_MAX_JSON} bytes")
    try:
        target = AliasTarget.model_validate_json(data)
    except ValidationError as error:
        raise BadRequest(f"body: {error.errors()[0]['msg']}", code="bad_json") from None
    version = _pick(state, target)
    runtime = _runtime(request)
    await runtime.registry.set_alias(
        state.tenant,
        name,
        _alias(alias),
        version.digest,
        _etag(request.headers.get("if-match")),
    )
    state = await runtime.snapshot.refresh(state.tenant, name) or state
    return state.answer(state.versions.get(version.digest, version))


async def delete_alias(request: Request, name: str, alias: str) -> Response:
    """Remove an alias; `latest` cannot be removed."""
    state = await _state(request, name)
    if _alias(alias) == bmt_core.LATEST:
        raise BadRequest("'latest' cannot be removed; delete the mask", code="alias_reserved")
    runtime = _runtime(request)
    await runtime.registry.set_alias(
        state.tenant, name, alias, None, _etag(request.headers.get("if-match"))
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
    runtime, state = _runtime(request), await _state(request, name)
    latest = state.find(None, None)
    if latest is not None:
        await runtime.residency.pin(latest, pinned)
    await runtime.registry.set_pin(state.tenant, name, pinned)
    state = await runtime.snapshot.refresh(state.tenant, name) or state
    return _latest(state)


async def blob(request: Request, digest: str) -> Response:
    """A file's bytes, or with HEAD whether it is here, for tenants that have a version of it."""
    runtime = _runtime(request)
    try:
        bmt_core.validate_digest(digest)
    except bmt_core.InvalidName as error:
        raise BadRequest(str(error), code="digest_invalid", param="digest") from None
    mine = any(
        v.file_digest == digest
        for s in runtime.snapshot.of_tenant(_tenant(request))
        for v in s.versions.values()
    )
    if not mine:
        raise NotFound(f"no blob {digest[:12]}…", code="blob_unknown")
    headers = {"ETag": f'"{digest}"', "X-Content-Type-Options": "nosniff"}
    if request.method == "HEAD":
        size = await runtime.registry.has_blob(digest)
        if not size:
            raise NotFound(f"no blob {digest[:12]}…", code="blob_unknown")
        return Response(headers={**headers, "Content-Length": str(size)}, media_type=OCTETS)
    size = await runtime.registry.has_blob(digest)
    data = bytes(await runtime.registry.blob(digest, size))
    if await asyncio.to_thread(bmt_core.file_digest, data) != digest:
        raise Unavailable(
            f"blob {digest[:12]}… in the registry is damaged; upload the mask again",
            code="blob_damaged",
        )
    return Response(data, headers=headers, media_type=OCTETS)
