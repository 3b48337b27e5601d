"""Commands `limits`: show, set and remove the limits of keys and tenants over all servers."""

from __future__ import annotations

from typing import Annotated

import typer
from bmt_core.console_script import TYPER_SETTINGS
from rich.console import Console

from bmt_client import Limits, UsageError
from bmt_client._usage.limits import LIMIT_NAMES, LimitTable

from ..output import print_table
from ..session import session

app = typer.Typer(
    help="Show, set and remove limits of keys and tenants; with an operator's key.",
    **TYPER_SETTINGS,
)

Key = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Id of a key, from `keys list`.", show_default=False),
]
Tenant = Annotated[str | None, typer.Option(metavar="TENANT", help="A tenant.", show_default=False)]


def _limit(of: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        min=0, metavar="N", help=f"{of}; 0: no limit.", show_default=False
    )
    return option


@app.command()
def show(context: typer.Context, key: Key = None, tenant: Tenant = None) -> None:
    """Show the limits of a key or a tenant; without either, all that are set, and the defaults."""
    run = session(context)
    if key is not None and tenant is not None:
        raise UsageError("give either --key or --tenant")
    with run.client() as client:
        table = client.limits()
    if key is None and tenant is None:
        rows = [("defaults", "each key", table.key_defaults)]
        rows += [("defaults", "each tenant", table.tenant_defaults)]
        rows += [("key", name, limits) for name, limits in table.keys.items()]
        rows += [("tenant", name, limits) for name, limits in table.tenants.items()]
        run.out.data(_document(table), lambda console: _print(console, rows))
        return
    kind, name = ("key", key) if tenant is None else ("tenant", tenant)
    stored = (table.keys if kind == "key" else table.tenants).get(name or "")
    limits = table.of(key=key, tenant=tenant)
    value = {"kind": kind, "name": name, "stored": stored is not None, **limits.given()}
    run.out.data(value, lambda console: _print(console, [(kind, name or "", limits)]))
    if stored is None:
        run.out.note("these are the server's defaults; no others are set")


@app.command("set")
def set_limits(
    context: typer.Context,
    key: Key = None,
    tenant: Tenant = None,
    requests_per_minute: Annotated[int | None, _limit("Requests a minute")] = None,
    tokens_per_minute: Annotated[int | None, _limit("Tokens a minute")] = None,
    tokens_per_day: Annotated[int | None, _limit("Tokens a day")] = None,
    tokens_per_month: Annotated[int | None, _limit("Tokens in 30 days")] = None,
    storage_bytes: Annotated[int | None, _limit("Bytes that a tenant stores")] = None,
    versions: Annotated[int | None, _limit("Versions that a tenant stores")] = None,
) -> None:
    """Set all limits of a key or a tenant. Those that are left out are the server's defaults.

    Every server enforces them within seconds.
    """
    run = session(context)
    limits = Limits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
        tokens_per_month=tokens_per_month,
        storage_bytes=storage_bytes,
        versions=versions,
    )
    kind, name = _one(key, tenant)
    if not limits.given():
        raise UsageError("give at least one limit; `limits remove` leaves none but the defaults")
    with run.client() as client:
        table = client.limits()
        made = client.set_limits(limits, key=key, tenant=tenant)
    before = (table.keys if kind == "key" else table.tenants).get(name, Limits()).given()
    for dropped in sorted(set(before) - set(made.given())):
        run.out.note(f"{dropped} was {before[dropped]:,}, and is the server's default from now on")
    defaults = table.key_defaults if kind == "key" else table.tenant_defaults
    run.out.data(
        {"kind": kind, "name": name, "stored": True, **made.over(defaults).given()},
        lambda console: _print(console, [(kind, name, made.over(defaults))]),
    )


@app.command()
def remove(context: typer.Context, key: Key = None, tenant: Tenant = None) -> None:
    """Remove the limits of a key or a tenant: the server's defaults apply."""
    run = session(context)
    kind, name = _one(key, tenant)
    with run.client() as client:
        client.delete_limits(key=key, tenant=tenant)
    run.out.data(
        {"kind": kind, "name": name, "stored": False},
        lambda console: console.print(f"{kind} {name}  the server's defaults apply"),
    )


def _one(key: str | None, tenant: str | None) -> tuple[str, str]:
    """Kind and name of the limits. Raises UsageError."""
    kind, name = ("key", key) if tenant is None else ("tenant", tenant)
    if not name or (key is not None and tenant is not None):
        raise UsageError("give either --key or --tenant")
    return kind, name


def _document(table: LimitTable) -> dict[str, object]:
    return {
        "defaults": {
            "keys": table.key_defaults.given(),
            "tenants": table.tenant_defaults.given(),
        },
        "keys": {name: limits.given() for name, limits in table.keys.items()},
        "tenants": {name: limits.given() for name, limits in table.tenants.items()},
    }


def _print(console: Console, rows: list[tuple[str, str, Limits]]) -> None:
    columns = [name.upper() for name in LIMIT_NAMES]
    lines = [[kind, name, *map(_text, limits.as_dict().values())] for kind, name, limits in rows]
    print_table(console, ["KIND", "NAME", *columns], lines, columns)


def _text(limit: int | None) -> str:
    """A number; `none` for 0, and `-` for the default."""
    return "-" if limit is None else f"{limit:,}" if limit else "none"
