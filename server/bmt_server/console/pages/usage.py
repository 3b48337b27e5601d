"""Requests and tokens of the key's tenant, by day, mask and key."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from bmt_server.console.charts import bars
from bmt_server.console.page import page, render
from bmt_server.console.session import Visitor
from bmt_server.registry.schemas import DEFAULT_TENANT


@page
async def show(request: Request, visitor: Visitor) -> Response:
    """Usage of the last 30 days; of all tenants for an operator's administrators who ask for it."""
    principal = visitor.principal
    may_see_all = principal.may("admin") and principal.tenant == DEFAULT_TENANT
    every = may_see_all and request.query_params.get("tenant") == "*"
    tenant = "*" if every else None
    by_day = await visitor.api.get("/v1/usage", group_by="day", tenant=tenant)
    groups = "tenant,mask,key" if every else "mask,key"
    rows = await visitor.api.get("/v1/usage", group_by=groups, tenant=tenant)
    counts = {row["day"]: float(row["requests"]) for row in by_day["data"]}
    first, last = date.fromisoformat(by_day["start"]), date.fromisoformat(by_day["end"])
    span = [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
    return render(
        request,
        visitor,
        "usage.html",
        bars=bars([(day, counts.get(day, 0.0)) for day in span]) if counts else [],
        days=by_day["data"],
        rows=sorted(rows["data"], key=_requests, reverse=True),
        total=rows["total"],
        start=rows["start"],
        end=rows["end"],
        every=every,
        may_see_all=may_see_all,
        labels=await _labels(visitor),
    )


async def _labels(visitor: Visitor) -> dict[str, str]:
    """Labels of the tenant's keys by their ids, for those who may list keys."""
    if not visitor.may("GET", "/v1/keys"):
        return {}
    found = await visitor.api.get("/v1/keys", limit=1000)
    return {key["key_id"]: key["label"] for key in found["data"]}


def _requests(row: dict[str, Any]) -> float:
    return float(row["requests"])
