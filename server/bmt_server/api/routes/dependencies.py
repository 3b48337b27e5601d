"""What a request to the registry's routes asks for: names, versions, conditions."""

from __future__ import annotations

import bmt_core
from fastapi import Request

from bmt_server.api.app_state import AppState
from bmt_server.errors import BadRequest, NotFound, from_core
from bmt_server.registry.schemas import AliasTarget, NameState, Principal, Version

OCTETS = "application/octet-stream"


def runtime_of(request: Request) -> AppState:
    """The API process's parts."""
    state: AppState = request.app.state.bmt
    return state


def tenant_of(request: Request) -> str:
    """Whose key the request came with."""
    principal: Principal = request.scope["bmt.principal"]
    return principal.tenant


def valid_ref(text: str) -> str:
    """`text` as a mask's name with alias or version. Raises ApiError."""
    try:
        return str(bmt_core.MaskRef.parse(text))
    except bmt_core.InvalidName as error:
        raise from_core(error) from None


def valid_name(text: str) -> str:
    """`text`, a valid name of masks. Raises ApiError."""
    try:
        return bmt_core.validate_name(text)
    except bmt_core.InvalidName as error:
        raise from_core(error) from None


def valid_alias(text: str) -> str:
    """`text`, a valid alias. Raises ApiError."""
    try:
        return bmt_core.validate_alias(text)
    except bmt_core.InvalidName as error:
        raise from_core(error) from None


def valid_digest(text: str) -> str:
    """`text`, 64 hex digits. Raises BadRequest."""
    try:
        return bmt_core.validate_digest(text)
    except bmt_core.InvalidName as error:
        raise BadRequest(str(error), code="digest_invalid", param="digest") from None


def no_mask(name: str) -> NotFound:
    """The error for a name that nobody uploaded."""
    return NotFound(f"no mask {name[:200]}", code="mask_not_found")


async def state_of(request: Request, name: str) -> NameState:
    """What the registry holds under a name. Raises NotFound."""
    runtime, tenant = runtime_of(request), tenant_of(request)
    valid_name(name)
    state = runtime.snapshot.get(tenant, name) or await runtime.snapshot.refresh(tenant, name)
    if state is None:
        raise no_mask(name)
    return state


def version_of(state: NameState, target: AliasTarget) -> Version:
    """The version that a body or path means. Raises BadRequest, NotFound."""
    if (target.digest is None) == (target.rev is None):
        raise BadRequest('give either {"digest": "…"} or {"rev": n}')
    found: Version | None
    if target.digest is not None:
        ref = bmt_core.MaskRef.parse(valid_ref(f"{state.name}@{target.digest}"))
        found = state.resolve(None, ref.digest_prefix)
    else:
        found = next((v for v in state.versions.values() if v.rev == target.rev), None)
    if found is None:
        raise NotFound(
            f"{state.name} has no version {target.digest or target.rev}", code="version_not_found"
        )
    return found


def etag(value: str | None) -> str | None:
    """The digest in an If-Match header; None where there is none."""
    if value is None:
        return None
    digest = value.strip().removeprefix("W/").strip('"')
    try:
        return bmt_core.validate_digest(digest)
    except bmt_core.InvalidName as error:
        raise BadRequest(f"If-Match: {error}", code="digest_invalid", param="if-match") from None
