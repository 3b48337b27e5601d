"""Routes that publish: a mask's whole file, or what changed since another version of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import bmt_core
from fastapi import Query, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from bmt_server.api.app_state import AppState
from bmt_server.api.routes.dependencies import (
    OCTETS,
    etag,
    runtime_of,
    state_of,
    tenant_of,
    valid_alias,
    valid_digest,
    valid_name,
    version_of,
)
from bmt_server.errors import (
    BadRequest,
    Conflict,
    LengthRequired,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMedia,
    from_core,
)
from bmt_server.ipc.blob import BlobError, decode_blob
from bmt_server.registry.schemas import AliasTarget, BaseRef, Version


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
    runtime, tenant = runtime_of(request), tenant_of(request)
    valid_name(name)
    if name in runtime.engine.base_names:
        raise BadRequest(f"{name!r} is the base model's name; choose another", code="name_reserved")
    aliases = [valid_alias(a) for a in alias if a != bmt_core.LATEST]
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
    runtime, state = runtime_of(request), await state_of(request, name)
    before = version_of(state, AliasTarget(digest=parent))
    wanted = valid_digest(digest)
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
    runtime: AppState, before: Version, blob: bytearray, flips: bytes
) -> tuple[Version, bmt_core.Mask, bytes]:
    """The version that comes of flipping positions of `before`. Raises ApiError."""
    fingerprint = runtime.settings.fingerprint
    try:
        old = decode_blob(blob, before.source, fingerprint, runtime.limits)
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
    runtime, name = runtime_of(request), version.name
    outcome, _ = await runtime.registry.publish(
        version,
        data,
        aliases=aliases,
        if_match=etag(request.headers.get("if-match")),
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
        {**state.response(stored), "outcome": outcome},
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
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > bound:
                raise _too_large(len(data), bound)
    except ClientDisconnect:
        raise BadRequest("the client went away", code="disconnected") from None
    return bytes(data)


def _too_large(size: int, bound: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the file is {size} bytes; a mask of this base has at most {bound}", param="file"
    )


def _stated_digest(request: Request, query: str | None) -> str | None:
    """The file digest that the client states, 64 hex digits, or None. Raises BadRequest."""
    if query is not None:
        return valid_digest(query.removeprefix("sha256:"))
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
    runtime: AppState, tenant: str, name: str, data: bytes, stated: str | None
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
        sparsity=mask.zeros / total,
        base=BaseRef(model_id=mask.base.model_id, fingerprint=mask.base.fingerprint),
        metadata=dict(mask.metadata),
    )
    return version, mask
