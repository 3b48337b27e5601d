"""Requests and tokens of a tenant, by key, mask and day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from fastapi import Query, Request

from bmt_server.api.routes.dependencies import app_state, in_turns
from bmt_server.errors import BadRequest, Forbidden
from bmt_server.registry.schemas import DEFAULT_TENANT, Principal
from bmt_server.registry.usage.counts import DAY_S, Counts, Slot

_GROUPS = ("tenant", "key", "mask", "day")
_DEFAULT_DAYS = 30
_MAX_DAYS = 400
MAX_ROWS = 10_000
_EVERY_TENANT = "*"


async def show(
    request: Request,
    start: str | None = Query(default=None, max_length=64),
    end: str | None = Query(default=None, max_length=64),
    group_by: str = Query(default="key,mask", max_length=64),
    tenant: str | None = Query(default=None, max_length=128),
) -> dict[str, Any]:
    """Usage of the key's tenant over the days from `start` to `end`, both included, in UTC.

    group_by: of tenant, key, mask and day, with commas between; empty: one total. tenant: another
    one, or `*` for all, for an administrator of the tenant `default`. Counts of other API processes
    are at most two seconds old. In a row, `mask` is null for the base model, and `(other)` beyond
    the number of masks that are counted apart.
    """
    state = app_state(request)
    groups = _read_groups(group_by)
    first, last = _read_days(start, end)
    wanted = _read_tenant(request.scope["bmt.principal"], tenant)
    await state.usage.flush()
    rows: dict[tuple[Any, ...], Counts] = {}
    total = Counts()
    async for lines in state.usage_store.read(wanted, first, last):
        async for slot, counts in in_turns(lines):
            total.add(counts)
            key = tuple(_value(group, slot) for group in groups)
            if key not in rows and len(rows) >= MAX_ROWS:
                raise BadRequest(
                    f"the answer has more than {MAX_ROWS} rows; ask for fewer days or groups",
                    code="usage_too_long",
                    param="group_by",
                )
            rows.setdefault(key, Counts()).add(counts)
    return {
        "object": "usage",
        "tenant": wanted or _EVERY_TENANT,
        "start": _date(first).isoformat(),
        "end": _date(last).isoformat(),
        "data": [
            {**dict(zip(groups, key, strict=True)), **rows[key].to_dict()}
            for key in sorted(rows, key=lambda key: [part or "" for part in key])
        ],
        "total": total.to_dict(),
    }


def _read_groups(text: str) -> list[str]:
    groups = [part.strip() for part in text.split(",") if part.strip()]
    for group in groups:
        if group not in _GROUPS or groups.count(group) > 1:
            raise BadRequest(
                f"group_by is {text!r}; give each of {', '.join(_GROUPS)} at most once",
                param="group_by",
            )
    return groups


def _read_days(start: str | None, end: str | None) -> tuple[int, int]:
    """Days since 1970. Raises BadRequest."""
    last = _read_date("end", end) if end is not None else datetime.now(UTC).date()
    first = (
        _read_date("start", start)
        if start is not None
        else max(last, date(1970, 2, 1)) - timedelta(days=_DEFAULT_DAYS - 1)
    )
    days = (last - first).days + 1
    if not 1 <= days <= _MAX_DAYS:
        raise BadRequest(
            f"start {first} and end {last} are {days} days; allowed: 1 to {_MAX_DAYS}",
            param="start",
        )
    epoch = date(1970, 1, 1)
    return (first - epoch).days, (last - epoch).days


def _read_date(param: str, text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise BadRequest(
            f"{param} is {text!r}; give a day in UTC, as in 2026-01-31", param=param
        ) from None


def _read_tenant(principal: Principal, tenant: str | None) -> str | None:
    """The tenant to read; None for all. Raises Forbidden."""
    if tenant is None or tenant == principal.tenant:
        return principal.tenant
    if not principal.may("admin") or principal.tenant != DEFAULT_TENANT:
        raise Forbidden(
            f"usage of another tenant than {principal.tenant!r} needs an administrator's key of "
            f"the tenant {DEFAULT_TENANT!r}",
            code="operator_only",
        )
    return None if tenant == _EVERY_TENANT else tenant


def _value(group: str, slot: Slot) -> str | None:
    if group == "day":
        return _date(slot.day).isoformat()
    if group == "mask":
        return slot.mask or None
    return slot.tenant if group == "tenant" else slot.key_id


def _date(day: int) -> date:
    return datetime.fromtimestamp(day * DAY_S, UTC).date()
