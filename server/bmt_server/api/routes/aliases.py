"""Routes of aliases: movable names of versions, each with a canary and a shadow if wanted."""

from __future__ import annotations

from typing import Any

import bmt_core
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from bmt_server.api.access_log import audit
from bmt_server.api.routes.dependencies import (
    app_state,
    check_free,
    condition_of,
    if_match,
    mask_not_found,
    read_json,
    shown,
    state_of,
    valid_alias,
    valid_digest,
    version_of,
)
from bmt_server.errors import BadRequest, NotFound
from bmt_server.registry.canary.split import Split, Target, points_of
from bmt_server.registry.names.name_state import NameState
from bmt_server.registry.schemas import (
    DIGEST_SHOWN,
    AliasBody,
    Promotion,
    SplitTarget,
    Version,
)


async def show_alias(request: Request, name: str, alias: str) -> JSONResponse:
    """An alias's main version, its canary and its shadow; the tag is the main version's digest."""
    stored = await state_of(request, name)
    if stored.entry(valid_alias(alias)) is None:
        # It may have been set through another replica a moment ago.
        stored = await app_state(request).replica.refresh(stored.tenant, name, ()) or stored
    entry = stored.entry(alias)
    if entry is None:
        raise NotFound(f"no alias {name}:{alias}", code="mask_not_found")
    version = entry.version()
    condition_of(request).check(version, f"`{name}:{alias}` is {version.model}")
    answer = _alias(stored, alias, version)
    return JSONResponse(answer, headers={"ETag": f'"{version.digest}"'})


async def put_alias(request: Request, name: str, alias: str) -> dict[str, Any]:
    """Point an alias to a version, with a canary and a shadow, or without. On `latest`: a rollback.

    What the body leaves out ends, in the same step.
    """
    state, stored = app_state(request), await state_of(request, name)
    check_free(state, f"{name}:{valid_alias(alias)}")
    body = await read_json(request, AliasBody)
    version = version_of(stored, body)
    expected = if_match(request, name, stored, alias)
    canary = _target(stored, version, body.canary, "canary")
    shadow = _target(stored, version, body.shadow, "shadow")
    if canary is None and shadow is None:
        await state.registry.set_alias(stored.tenant, name, alias, version.digest, expected)
    else:
        _check_splittable(alias)
        split = Split(version.digest, canary, shadow)
        await state.splits.set(stored.tenant, name, alias, split, expected)
    audit(
        request,
        "alias",
        f"{name}:{alias}",
        version=version.model,
        digest=version.digest,
        canary=_audited(name, canary),
        shadow=_audited(name, shadow),
    )
    stored = await state.replica.refresh(stored.tenant, name, ()) or stored
    version = stored.versions.get(version.digest, version)
    return {**shown(request, stored, version), **_alias(stored, alias, version)}


async def promote(request: Request, name: str, alias: str) -> dict[str, Any]:
    """Make the canary of an alias its main version, and end canary and shadow, in one step."""
    state, stored = app_state(request), await state_of(request, name)
    body = await read_json(request, Promotion)
    canary = valid_digest(body.canary) if body.canary is not None else None
    _check_splittable(valid_alias(alias))
    expected = if_match(request, name, stored, alias)
    digest = await state.splits.promote(stored.tenant, name, alias, canary, expected)
    audit(request, "promote", f"{name}:{alias}", digest=digest, former=stored.aliases.get(alias))
    return await _changed(request, stored, alias, digest)


async def roll_back(request: Request, name: str, alias: str) -> dict[str, Any]:
    """End the canary and the shadow of an alias in one step: all requests get its main version."""
    state, stored = app_state(request), await state_of(request, name)
    _check_splittable(valid_alias(alias))
    expected = if_match(request, name, stored, alias)
    digest = await state.splits.roll_back(stored.tenant, name, alias, expected)
    split = stored.splits.get(alias)
    ended = split.canary.digest if split is not None and split.canary is not None else None
    audit(request, "rollback", f"{name}:{alias}", digest=digest, canary=ended)
    return await _changed(request, stored, alias, digest)


async def delete_alias(request: Request, name: str, alias: str) -> Response:
    """Delete an alias with its canary and shadow; `latest` cannot be deleted."""
    state, stored = app_state(request), await state_of(request, name)
    if valid_alias(alias) == bmt_core.LATEST:
        raise BadRequest("'latest' cannot be removed; delete the mask", code="alias_reserved")
    expected = if_match(request, name, stored, alias)
    await state.registry.set_alias(stored.tenant, name, alias, None, expected)
    audit(request, "alias_delete", f"{name}:{alias}", digest=stored.aliases.get(alias))
    await state.replica.refresh(stored.tenant, name, ())
    return Response(status_code=204)


def _check_splittable(alias: str) -> None:
    """Raise BadRequest for `latest`."""
    if alias == bmt_core.LATEST:
        raise BadRequest(
            "'latest' has neither canary nor shadow, because each upload moves it; give them to "
            "another alias",
            code="alias_reserved",
        )


def _target(
    stored: NameState, main: Version, given: SplitTarget | None, part: str
) -> Target | None:
    """The version of a body's canary or shadow, checked. Raises BadRequest, NotFound."""
    if given is None:
        return None
    version = version_of(stored, given)
    points = points_of(given.percent, f"{part}.percent")
    if version.digest == main.digest:
        raise BadRequest(
            f"the {part} {version.model} is the alias's own version; name another one",
            code="split_of_one",
            param=part,
        )
    if version.base.fingerprint != main.base.fingerprint:
        raise BadRequest(
            f"the {part} {version.model} is a mask of {version.base.model_id[:200]}, and "
            f"{main.model} is one of {main.base.model_id[:200]}; a server has one base",
            code="base_mismatch",
            param=part,
        )
    return Target(version.digest, points)


def _audited(name: str, target: Target | None) -> str:
    """Canary or shadow in the audit's line."""
    if target is None:
        return ""
    return f"{name}@{target.digest[:DIGEST_SHOWN]} {target.percent:g} percent"


async def _changed(request: Request, stored: NameState, alias: str, digest: str) -> dict[str, Any]:
    replica = app_state(request).replica
    stored = await replica.refresh(stored.tenant, stored.name, ()) or stored
    version = stored.versions.get(digest)
    if version is None:
        raise mask_not_found(stored.name)
    return {**shown(request, stored, version), **_alias(stored, alias, version)}


def _alias(stored: NameState, alias: str, version: Version) -> dict[str, Any]:
    """JSON of an alias whose main version this is."""
    split = stored.split(alias) if stored.aliases.get(alias) == version.digest else None
    return {
        "object": "alias",
        "name": stored.name,
        "alias": alias,
        **_named(version),
        "canary": _share(stored, split.canary if split is not None else None),
        "shadow": _share(stored, split.shadow if split is not None else None),
    }


def _share(stored: NameState, target: Target | None) -> dict[str, Any] | None:
    version = stored.versions.get(target.digest) if target is not None else None
    if target is None or version is None:
        return None
    return {**_named(version), "percent": target.percent}


def _named(version: Version) -> dict[str, Any]:
    return {"digest": version.digest, "rev": version.rev, "model": version.model}
