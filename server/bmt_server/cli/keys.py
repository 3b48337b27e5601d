"""`bmt-server keys`: create, list and revoke API keys of any reachable registry."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from bmt_server.cli.common import AsJson, RegistryUrl, with_connection

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")

T = TypeVar("T")


def _with_keys(url: str, work: Callable[..., Awaitable[T]]) -> T:
    from bmt_server.registry.api_keys import ApiKeyStore

    return with_connection(url, lambda connection: work(ApiKeyStore(connection)))


@app.command()
def create(
    registry: RegistryUrl,
    scope: Annotated[
        list[str], typer.Option(help="infer, upload, admin, priority or metrics; repeatable.")
    ],
    tenant: Annotated[str, typer.Option(help="Tenant whose masks the key can see.")] = "default",
    label: Annotated[str, typer.Option(help="Free-text note shown by `keys list`.")] = "",
    expires: Annotated[
        str | None, typer.Option(help="Duration (90m, 12h, 30d, 4w) or ISO 8601 time with a zone.")
    ] = None,
) -> None:
    """Create a key and print it. It is never shown again."""
    made = _with_keys(
        registry,
        lambda keys: keys.create(tuple(scope), tenant=tenant, label=label, expires=expires),
    )
    assert made is not None
    print(made[0])


@app.command()
def generate() -> None:
    """Print a new administrator's key for BMT_ADMIN_KEY, which a server adds to its registry at
    start."""
    from bmt_server.registry.api_keys import make_key

    print(make_key(("admin",)))


@app.command("list")
def list_keys(registry: RegistryUrl, as_json: AsJson = False) -> None:
    """List keys by id. Secrets are not stored."""
    records = _with_keys(registry, lambda keys: keys.records())
    if as_json:
        print(json.dumps([asdict(r) for r in records], indent=2))
        return
    table = Table(box=None)
    for heading in ("ID", "TENANT", "SCOPES", "LABEL", "CREATED", "EXPIRES"):
        table.add_column(heading)
    for r in records:
        table.add_row(r.key_id, r.tenant, ",".join(r.scopes), r.label, r.created, r.expires or "-")
    Console().print(table)


@app.command()
def revoke(
    registry: RegistryUrl, key_id: Annotated[str, typer.Argument(help="Id from `keys list`.")]
) -> None:
    """Revoke a key. Every server refuses it within seconds."""
    record = _with_keys(registry, lambda keys: keys.revoke(key_id))
    print(f"revoked {record.key_id} ({record.label or record.tenant})")
