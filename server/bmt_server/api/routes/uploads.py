"""Upload routes: a complete mask file, or the changes relative to another version of the mask."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import bmt_core
from fastapi import Query, Request
from fastapi.responses import JSONResponse

from bmt_server.api.admission import UploadLimiter
from bmt_server.api.app_state import AppState
from bmt_server.api.publishing.publication import check_targets, decode, publish, read_expiry
from bmt_server.api.routes.dependencies import (
    OCTETS,
    app_state,
    principal_of,
    receiving,
    state_of,
    tenant_of,
    valid_digest,
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
from bmt_server.registry.schemas import AliasTarget, Version


async def put_mask(
    request: Request,
    name: str,
    alias: list[str] = Query(default=[]),  # noqa: B008
    digest: str | None = Query(default=None),
    resident: bool = Query(default=False),
    expires: str | None = Query(default=None, max_length=64),
) -> JSONResponse:
    """Publish a version from the bytes of a `.bmt` file: 201 if it is new, else 200.

    The response follows when the mask is on this server's disk; `resident` also loads it into the
    workers' memory, in the background. expires: a time or a duration such as `24h`, for names of
    training runs alone, after which the servers remove the name; the last upload's counts.
    """
    state, tenant = app_state(request), tenant_of(request)
    aliases = check_targets(request, name, alias)
    until = read_expiry(name, expires)
    async with received(request, state) as data:
        stated = _stated_digest(request, digest)
        version, mask = await asyncio.to_thread(decode, state, tenant, name, data, stated)
        return await publish(
            request, version, mask, data, aliases=aliases, resident=resident, expires=until
        )


async def patch_mask(
    request: Request,
    name: str,
    parent: str = Query(),
    digest: str = Query(),
    resident: bool = Query(default=False),
    expires: str | None = Query(default=None, max_length=64),
) -> JSONResponse:
    """Publish a version that differs from `parent`, a version of this name, in some positions.

    The body is a `.bmt` file of the flips: the positions that are zero in exactly one of the two
    versions. digest: the expected mask digest of the result; if it differs, the response is 412
    and nothing is stored. For a trainer that changes a few positions in each step. Conditions and
    `expires` are those of PUT.
    """
    until = read_expiry(name, expires)
    state, stored = app_state(request), await state_of(request, name)
    before = version_of(stored, AliasTarget(digest=parent))
    state.resolver.check_base(before)
    expected = valid_digest(digest)
    async with received(request, state) as flips:
        blob = await state.registry.blob(before.file_digest, before.bytes)
        version, mask, data = await asyncio.to_thread(_apply_flips, state, before, blob, flips)
        if mask.digest != expected:
            raise Conflict(
                f"{before.model} with these flips is {mask.digest[:12]} and the request states "
                f"{expected[:12]}; upload the whole mask",
                code="digest_mismatch",
            )
        return await publish(
            request, version, mask, data, aliases=(), resident=resident, expires=until
        )


def _apply_flips(
    state: AppState, before: Version, blob: bytearray, flips: bytes
) -> tuple[Version, bmt_core.Mask, bytes]:
    """The version that results from flipping positions of `before`. Raises ApiError."""
    fingerprint = state.settings.fingerprint
    try:
        old = decode_blob(blob, before.source, fingerprint, state.limits)
    except BlobError as error:
        raise Unavailable(f"{before.model}: {error}", code=error.code) from None
    try:
        change = bmt_core.decode(flips, limits=state.limits, expect_base=fingerprint)
        mask = bmt_core.symmetric_difference(old, change, dict(change.metadata))
    except bmt_core.BmtError as error:
        raise from_core(error) from None
    data = bmt_core.encode(mask)
    version, mask = decode(state, before.tenant, before.name, data, None)
    return version, mask, data


@asynccontextmanager
async def received(
    request: Request,
    state: AppState,
    limiter: UploadLimiter | None = None,
    max_bytes: int | None = None,
) -> AsyncIterator[bytes]:
    """The complete body, with a place for the work on it. Raises ApiError.

    limiter, max_bytes: the bounds; default, those of masks.
    """
    limiter = limiter or state.uploads
    with limiter.receive(principal_of(request).key_id) as received:
        data = await _read_upload(request, max_bytes or state.max_upload_bytes, received)
        async with limiter.work:
            yield data


async def _read_upload(request: Request, max_bytes: int, received: Callable[[int], None]) -> bytes:
    """The body, whose length the client must state. Raises ApiError.

    received: called with the size of each part that arrives.
    """
    kind = request.headers.get("content-type", OCTETS).partition(";")[0].strip().lower()
    if kind != OCTETS:
        raise UnsupportedMedia(f"content type is {kind!r}; send the file itself as {OCTETS}")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMedia("a .bmt file is already compressed; omit Content-Encoding")
    length = request.headers.get("content-length", "")
    if not length.isascii() or not length.isdigit():
        raise LengthRequired("an upload needs Content-Length")
    if int(length) > max_bytes:
        raise _too_large(int(length), max_bytes)
    data = bytearray()
    with receiving():
        async for chunk in request.stream():
            if len(data) + len(chunk) > max_bytes:
                raise _too_large(len(data) + len(chunk), max_bytes)
            received(len(chunk))
            data += chunk
    return bytes(data)


def _too_large(size: int, max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the file is {size} bytes, and at most {max_bytes} are allowed here", param="file"
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
        "Content-Digest must contain sha-256=:<base64>:", code="digest_invalid", param="digest"
    )
