"""Publication of a mask file that has arrived: validation, conditions, audit, response."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import bmt_core
from fastapi import Request
from fastapi.responses import JSONResponse

from bmt_server.api.access_log import audit
from bmt_server.api.app_state import AppState
from bmt_server.api.permissions import ROLLOUT_PREFIX
from bmt_server.api.routes.dependencies import (
    app_state,
    check_free,
    if_match,
    principal_of,
    shown,
    valid_alias,
    valid_name,
)
from bmt_server.api.usage.storage import publish_within_quota
from bmt_server.errors import BadRequest, Conflict, Forbidden, from_core
from bmt_server.registry.keys.expiry import parse_expiry
from bmt_server.registry.keys.writer import MAX_LABEL_CHARACTERS
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.schemas import MAX_ADDRESS, BaseRef, Publisher, Version
from bmt_server.sources.web import Fetched

logger = logging.getLogger("vllm.bmt_server")

_MAX_SOURCE = 1024  # characters of a source that a version keeps


def check_targets(request: Request, name: str, alias: Sequence[str]) -> list[str]:
    """The aliases that move with a publication of `name`, without `latest`. Raises ApiError."""
    valid_name(name)
    aliases = [valid_alias(a) for a in alias if a != bmt_core.LATEST]
    for model in (name, *(f"{name}:{a}" for a in aliases)):
        check_free(app_state(request), model)
    if aliases and not principal_of(request).may("promote"):
        raise Forbidden(
            f"an upload that moves {name[:128]}:{aliases[0]} needs the scope 'promote'; upload "
            "without aliases, and let a key with that scope move them"
        )
    return aliases


def read_expiry(name: str, text: str | None) -> int | None:
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


async def publish(
    request: Request,
    version: Version,
    mask: bmt_core.Mask,
    data: bytes,
    *,
    aliases: Sequence[str],
    resident: bool,
    expires: int | None,
    only_first: bool = False,
    fetched: Fetched | None = None,
    publisher: Publisher | None = None,
) -> JSONResponse:
    """Store a validated version under the request's conditions, and respond with it.

    only_first: only if the name has no version, as with `If-None-Match: *`. fetched: the source of
    an imported file. publisher: the request's caller by default. Raises ApiError.
    """
    state, name, record = app_state(request), version.name, request.scope["bmt.record"]
    publisher = publisher or Publisher(
        key_id=record.key_id,
        key_name=record.key_name[:MAX_LABEL_CHARACTERS],
        address=record.peer[:MAX_ADDRESS],
    )
    source = fetched.source[:_MAX_SOURCE] if fetched is not None else None
    version = version.model_copy(update={"published_by": publisher, "imported_from": source})
    before = state.replica.get(version.tenant, name)
    _warn_of_another_base(before, version)
    outcome = await publish_within_quota(
        state,
        version,
        data,
        aliases=aliases,
        if_match=if_match(request, name, before),
        if_none_match=_only_first(request) or only_first,
        expires=expires,
    )
    audit(
        request,
        "publish" if fetched is None else "import",
        version.model,
        digest=version.digest,
        file_digest=version.file_digest,
        outcome=outcome,
        aliases=",".join(aliases),
        expires=expires,
        source=source,
        source_address=fetched.address if fetched is not None else None,
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


def decode(
    state: AppState, tenant: str, name: str, data: bytes, stated: str | None
) -> tuple[Version, bmt_core.Mask]:
    """Validate a file. stated: its SHA-256 as the client states it. Raises ApiError."""
    file_digest = hashlib.sha256(data).hexdigest()
    if stated is not None and stated != file_digest:
        raise BadRequest(
            f"the file's SHA-256 is {file_digest[:12]}… and the request states {stated[:12]}…; "
            "it was damaged in transit or is another file, send it again",
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
