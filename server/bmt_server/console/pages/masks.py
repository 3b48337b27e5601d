"""Masks: list and upload; one mask with its versions and aliases, and its way back."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import bmt_core
from fastapi import Request
from fastapi.responses import Response

from bmt_server.console.calls import Call
from bmt_server.console.forms import pieces_of, read_fields, read_file
from bmt_server.console.page import page, redirect, render
from bmt_server.console.session import Visitor, console_state
from bmt_server.errors import ApiError, BadRequest

_PAGE = 50
_VERSIONS = 20


@page
async def show_all(request: Request, visitor: Visitor) -> Response:
    """Masks of the key's tenant by name, and the form of an upload."""
    return await _list(request, visitor)


@page
async def upload(request: Request, visitor: Visitor) -> Response:
    """Publish a `.bmt` file as a version."""
    state = console_state(request)
    try:
        async with read_file(request, visitor, state.uploads, state.max_upload_bytes) as (
            form,
            file,
        ):
            name = form.fields.get("name", "").strip()
            if not name:
                raise BadRequest("enter the mask's name", param="name")
            call = Call.of(
                "PUT",
                _path(name),
                query={"alias": form.fields.get("alias", "").strip() or None},
                pieces=pieces_of(file),
                size=form.size,
            )
            answer = await visitor.api.send(call)
    except ApiError as error:
        return await _list(request, visitor, error)
    done = "uploaded" if answer.status == 201 else "unchanged"
    return redirect(request, f"/masks/{quote(name, safe='')}", done)


@page
async def show(request: Request, visitor: Visitor) -> Response:
    """One mask."""
    return await _mask(request, visitor)


@page
async def change(request: Request, visitor: Visitor) -> Response:
    """Move an alias, `latest` too: that is a rollback. Or end its canary, or remove it."""
    name, what = request.path_params["name"], request.path_params["what"]
    try:
        fields = await read_fields(request, visitor.csrf)
        alias = fields.get("alias", "").strip()
        bmt_core.validate_alias(alias)
        path = f"{_path(name)}/aliases/{alias}"
        if what == "alias":
            # The version that was there when the page was made: another's change is not undone.
            call = Call.of("PUT", path, json={"digest": fields.get("digest", "")})
            if was := fields.get("was"):
                call.headers.append((b"if-match", f'"{was}"'.encode("latin-1", "replace")))
            done = "rolled-back" if alias == bmt_core.LATEST else "alias"
        elif what == "rollback":
            call, done = Call.of("POST", f"{path}/rollback"), "ended"
        elif what == "unalias":
            call, done = Call.of("DELETE", path), "removed"
        else:
            raise BadRequest(f"there is no change {what!r} of a mask")
        await visitor.api.send(call)
    except bmt_core.InvalidName as error:
        return await _mask(request, visitor, BadRequest(str(error), param="alias"))
    except ApiError as error:
        return await _mask(request, visitor, error)
    return redirect(request, f"/masks/{quote(name, safe='')}", done)


async def _list(request: Request, visitor: Visitor, error: ApiError | None = None) -> Response:
    after = request.query_params.get("after", "")[:128]
    found = await visitor.api.get("/v1/masks", limit=_PAGE, after=after)
    return render(
        request,
        visitor,
        "masks.html",
        error=error,
        masks=found["data"],
        after=found["last"] if found["has_more"] else None,
        is_first=not after,
        may_upload=visitor.may("PUT", "/v1/masks/m"),
        max_bytes=console_state(request).max_upload_bytes,
    )


async def _mask(request: Request, visitor: Visitor, error: ApiError | None = None) -> Response:
    name = request.path_params["name"]
    after = request.query_params.get("after", "")
    query = {"after": after} if after.isdecimal() and len(after) < 16 else {}
    found = await visitor.api.get(f"{_path(name)}/versions", limit=_VERSIONS, **query)
    latest = await visitor.api.get(_path(name))
    versions: list[dict[str, Any]] = found["data"]
    if visitor.may("PUT", "/v1/masks/m/pin"):  # an administrator's view of a version has more
        versions = await asyncio.gather(
            *(visitor.api.get(_path(f"{name}@{version['digest']}")) for version in versions)
        )
    return render(
        request,
        visitor,
        "mask.html",
        error=error,
        name=name,
        versions=versions,
        latest=latest,
        after=found["last"] if found["has_more"] else None,
        may_roll_back=visitor.may("PUT", "/v1/masks/m/aliases/latest"),
        may_promote=visitor.may("PUT", "/v1/masks/m/aliases/prod"),
        may_ask=visitor.may("POST", "/v1/chat/completions"),
    )


def _path(name: str) -> str:
    # A name with a slash would be another route; quoted, the route refuses it.
    if "/" in name:
        raise BadRequest("a mask's name has no slash", param="name")
    return f"/v1/masks/{name}"
