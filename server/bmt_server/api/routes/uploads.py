"""Upload routes: a complete mask file, or the changes relative to another version of the mask."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import bmt_core
from fastapi import Query, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from bmt_server.api.access_log import audit
from bmt_server.api.app_state import AppState
from bmt_server.api.permissions import ROLLOUT_PREFIX
from bmt_server.api.routes.dependencies import (
    OCTETS,
    app_state,
    check_free,
    if_match,
    principal_of,
    shown,
    state_of,
    tenant_of,
    valid_alias,
    valid_digest,
    valid_name,
    version_of,
)
from bmt_server.api.usage.storage import publish_within_quota
from bmt_server.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    LengthRequired,
    PayloadTooLarge,
    Unavailable,
    UnsupportedMedia,
    from_core,
)
from bmt_server.ipc.blob import BlobError, decode_blob
from bmt_server.registry.keys.expiry import parse_expiry
from bmt_server.registry.keys.writer import MAX_LABEL_CHARACTERS
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.schemas import MAX_ADDRESS, AliasTarget, BaseRef, Publisher, Version

logger = logging.getLogger("vllm.bmt_server")


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
    valid_name(name)
    aliases = [valid_alias(a) for a in alias if a != bmt_core.LATEST]
    for model in (name, *(f"{name}:{a}" for a in aliases)):
        check_free(state, model)
    if aliases and not principal_of(request).may("promote"):
        raise Forbidden(
            f"an upload that moves {name[:128]}:{aliases[0]} needs the scope 'promote'; upload "
            "without aliases, and let a key with that scope move them"
        )
    until = _expiry(name, expires)
    async with _received(request, state) as data:
        stated = _stated_digest(request, digest)
        version, mask = await asyncio.to_thread(_decode, state, tenant, name, data, stated)
        return await _publish(
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
    until = _expiry(name, expires)
    state, stored = app_state(request), await state_of(request, name)
    before = version_of(stored, AliasTarget(digest=parent))
    state.resolver.check_base(before)
    expected = valid_digest(digest)
    async with _received(request, state) as flips:
        blob = await state.registry.blob(before.file_digest, before.bytes)
        version, mask, data = await asyncio.to_thread(_apply_flips, state, before, blob, flips)
        if mask.digest != expected:
            raise Conflict(
                f"{before.model} with these flips is {mask.digest[:12]} and the request states "
                f"{expected[:12]}; upload the whole mask",
                code="digest_mismatch",
            )
        return await _publish(
            request, version, mask, data, aliases=(), resident=resident, expires=until
        )


def _expiry(name: str, text: str | None) -> int | None:
    """Seconds since 1970 of the request's `expires`. Raises BadRequest."""
    if text is None:
        return None
    if not name.startswith(ROLLOUT_PREFIX):
        # An expiry is a deletion, for which other names need the scope admin.
        raise BadRequest(
            f"{name[:128]!r} cannot expire: only masks of training runs do, whose names begin with "
            f"{ROLLOUT_PREFIX!r}",
            code="expiry_refused",
            param="expires",
        )
    return int(datetime.fromisoformat(parse_expiry(text)).timestamp())


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
    version, mask = _decode(state, before.tenant, before.name, data, None)
    return version, mask, data


async def _publish(
    request: Request,
    version: Version,
    mask: bmt_core.Mask,
    data: bytes,
    *,
    aliases: Sequence[str],
    resident: bool,
    expires: int | None,
) -> JSONResponse:
    """Store a validated version under the request's conditions, and respond with it."""
    state, name, record = app_state(request), version.name, request.scope["bmt.record"]
    publisher = Publisher(
        key_id=record.key_id,
        key_name=record.key_name[:MAX_LABEL_CHARACTERS],
        address=record.peer[:MAX_ADDRESS],
    )
    version = version.model_copy(update={"published_by": publisher})
    before = state.replica.get(version.tenant, name)
    _warn_of_another_base(before, version)
    outcome = await publish_within_quota(
        state,
        version,
        data,
        aliases=aliases,
        if_match=if_match(request, name, before),
        if_none_match=_only_first(request),
        expires=expires,
    )
    audit(
        request,
        "publish",
        version.model,
        digest=version.digest,
        file_digest=version.file_digest,
        outcome=outcome,
        aliases=",".join(aliases),
        expires=expires,
    )
    current = await state.replica.refresh(version.tenant, name, [version.digest])
    state.retention.published(version.tenant, name)
    stored = current.versions.get(version.digest) if current else None
    if stored is not None:
        await state.lifecycle.store_uploaded(stored, mask, resident=resident)
    state.metrics.uploads.labels(outcome).inc()
    if current is None or stored is None:
        raise Conflict(f"{name} was deleted while it was published", code="deleted")
    return JSONResponse(
        {**shown(request, current, stored), "outcome": outcome},
        201 if outcome == "created" else 200,
        headers={"ETag": f'"{stored.digest}"'},
    )


def _only_first(request: Request) -> bool:
    """True with `If-None-Match: *`: publish no second version. Raises BadRequest for other tags."""
    given = request.headers.get("if-none-match")
    if given not in (None, "*"):
        raise BadRequest(
            f"If-None-Match is {given[:100]!r}; an upload takes *, for a name that has no version",
            code="condition_refused",
            param="if-none-match",
        )
    return given is not None


def _warn_of_another_base(stored: NameState | None, version: Version) -> None:
    """Log that a name moves to another base: servers of the former one answer 404 for it."""
    latest = stored.entry(None) if stored is not None else None
    if latest is not None and latest.fingerprint != version.base.fingerprint:
        logger.warning(
            "%s moves from a mask of base %s to one of base %s: servers of the former base answer "
            "404 for it. Separate the bases by names, or by prefixes of the registry.",
            version.name,
            latest.fingerprint[:12],
            version.base.fingerprint[:12],
        )


@asynccontextmanager
async def _received(request: Request, state: AppState) -> AsyncIterator[bytes]:
    """The complete body, with a place for the work on it. Raises ApiError."""
    with state.uploads.receive(principal_of(request).key_id) as received:
        data = await _read_upload(request, state.max_upload_bytes, received)
        async with state.uploads.work:
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
    try:
        async for chunk in request.stream():
            if len(data) + len(chunk) > max_bytes:
                raise _too_large(len(data) + len(chunk), max_bytes)
            received(len(chunk))
            data += chunk
    except ClientDisconnect:
        raise BadRequest("the client closed the connection", code="disconnected") from None
    return bytes(data)


def _too_large(size: int, max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the file is {size} bytes; a mask of this base model has at most {max_bytes}", param="file"
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


def _decode(
    state: AppState, tenant: str, name: str, data: bytes, stated: str | None
) -> tuple[Version, bmt_core.Mask]:
    """Validate a file. stated: its SHA-256 as the client states it. Raises ApiError."""
    file_digest = hashlib.sha256(data).hexdigest()
    if stated is not None and stated != file_digest:
        raise BadRequest(
            f"the body's SHA-256 is {file_digest[:12]}… and the request states {stated[:12]}…; "
            "it was damaged in transit, send it again",
            code="digest_mismatch",
            param="digest",
        )
    try:
        mask = bmt_core.decode(data, limits=state.limits, expect_base=state.settings.fingerprint)
    except bmt_core.BmtError as error:
        raise from_core(error) from None
    total = sum(rows * cols for rows, cols in state.settings.gates.values())
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
