"""Command `usage`: requests and tokens by tenant, key, mask and day."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from bmt_client import UsageRow

from ..output import print_table
from ..session import session

_COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
_COLUMNS = ("REQUESTS", "PROMPT", "CACHED", "COMPLETION")


def usage(
    context: typer.Context,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="DAY", help="First day, UTC: 2026-01-31. Default: 29 before the last."
        ),
    ] = None,
    end: Annotated[
        str | None, typer.Option(metavar="DAY", help="Last day, UTC. Default: today.")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            metavar="GROUPS",
            help="Rows by these of tenant, key, mask and day, with commas; '' for one total.",
        ),
    ] = "key,mask",
    tenant: Annotated[
        str | None,
        typer.Option(
            metavar="TENANT",
            help="Another tenant, or '*' for all; with an admin key of the tenant default.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show requests and tokens of the tenant by key, mask and day."""
    run = session(context)
    with run.client() as client:
        found = client.usage(start=start, end=end, group_by=by, tenant=tenant)
    groups = [group.strip() for group in by.split(",") if group.strip()]

    def show(console: Console) -> None:
        rows = [[*(_group(row, group) for group in groups), *_counts(row)] for row in found.data]
        if groups:
            rows.append(["total", *[""] * (len(groups) - 1), *_counts(found.total)])
        print_table(console, [*map(str.upper, groups), *_COLUMNS], rows, _COLUMNS)
        of = "all tenants" if found.tenant == "*" else f"tenant {found.tenant}"
        run.out.note(f"{of}, {found.start} to {found.end} (UTC)")

    run.out.data(found.as_dict(), show)


def _group(row: UsageRow, group: str) -> str:
    value = getattr(row, group, None)
    return "(base model)" if value is None and group == "mask" else str(value)


def _counts(row: UsageRow) -> list[str]:
    return [f"{getattr(row, name):,}" for name in _COUNTS]
