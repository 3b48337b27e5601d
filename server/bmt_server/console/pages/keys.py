"""API keys, for administrators: list, create, revoke. A secret is on one page, once."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from bmt_server.console.calls import Call
from bmt_server.console.forms import read_fields
from bmt_server.console.page import page, redirect, render
from bmt_server.console.session import Visitor
from bmt_server.errors import ApiError, BadRequest
from bmt_server.registry.keys.record import SCOPES

_PAGE = 100


@page
async def show_all(request: Request, visitor: Visitor) -> Response:
    """Keys that the visitor may see, by id."""
    return await _list(request, visitor)


@page
async def create(request: Request, visitor: Visitor) -> Response:
    """Create a key. The answer is its page, not a redirect: the secret is nowhere else."""
    try:
        fields = await read_fields(request, visitor.csrf)
        body: dict[str, Any] = {
            "scopes": [scope for scope in fields.get("scopes", "").split(",") if scope],
            "label": fields.get("label", "").strip(),
        }
        if not body["scopes"]:
            raise BadRequest("choose at least one scope", param="scopes")
        for name in ("tenant", "expires"):
            if value := fields.get(name, "").strip():
                body[name] = value
        answer = await visitor.api.send(Call.of("POST", "/v1/keys", json=body))
    except ApiError as error:
        return await _list(request, visitor, error=error)
    return await _list(request, visitor, made=answer.json())


@page
async def change(request: Request, visitor: Visitor) -> Response:
    """Revoke a key."""
    key_id, what = request.path_params["key"], request.path_params["what"]
    try:
        await read_fields(request, visitor.csrf)
        if what != "revoke":
            raise BadRequest(f"there is no change {what!r} of a key")
        await visitor.api.send(Call.of("DELETE", f"/v1/keys/{key_id}"))
    except ApiError as error:
        return await _list(request, visitor, error=error)
    return redirect(request, "/keys", "revoked")


async def _list(
    request: Request,
    visitor: Visitor,
    *,
    error: ApiError | None = None,
    made: dict[str, Any] | None = None,
) -> Response:
    after = request.query_params.get("after", "")[:64]
    found = await visitor.api.get("/v1/keys", limit=_PAGE, after=after)
    return render(
        request,
        visitor,
        "keys.html",
        error=error,
        made=made,
        keys=found["data"],
        after=found["last"] if found["has_more"] else None,
        scopes=[scope for scope in SCOPES if visitor.principal.may(scope)],
        is_operator=visitor.principal.may("operator"),
    )
