"""`bmt-server keys`: create, list, rotate and revoke API keys of any reachable registry."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bmt_server.cli.common import AsJson, RegistryUrl, say, with_connection

app = typer.Typer(no_args_is_help=True, help="Create, list, rotate and revoke API keys.")

T = TypeVar("T")


def _with_keys(url: str, work: Callable[..., Awaitable[T]]) -> T:
    from bmt_server.registry.api_keys import ApiKeyStore

    return with_connection(url, lambda connection: work(ApiKeyStore(connection)))


@app.command()
def create(
    registry: RegistryUrl,
    scope: Annotated[
        list[str],
        typer.Option(
            help="infer, upload, promote, train, admin, priority, metrics or operator; repeatable."
        ),
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
        lambda keys: keys.create(
            tuple(scope), tenant=tenant, label=label, expires=expires, durable=True
        ),
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
        shown = [{**asdict(r), "status": r.status, "fault": r.fault} for r in records]
        print(json.dumps(shown, indent=2))
        return
    table = Table(box=None)
    for heading in ("ID", "TENANT", "SCOPES", "LABEL", "CREATED", "EXPIRES", "STATUS"):
        table.add_column(heading, overflow="fold")
    for r in records:
        scopes, expires = ",".join(r.scopes), r.expires or "-"
        row = (r.key_id, r.tenant, scopes, r.label, r.created, expires, r.status)
        table.add_row(*map(escape, row))
    # In a pipe each key is one line, and nothing is cut.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)
    for r in records:
        if r.fault:
            say(f"key {r.key_id} is refused by all servers: {r.fault}; revoke it")


@app.command()
def rotate(
    registry: RegistryUrl,
    key_id: Annotated[str, typer.Argument(help="Id from `keys list`.")],
    overlap: Annotated[
        str, typer.Option(help="Time for which the old key still works: 0m, 12h, 7d.")
    ] = "1h",
    expires: Annotated[
        str | None, typer.Option(help="Expiry of the new key. Default: the old one's.")
    ] = None,
) -> None:
    """Print a new key with the tenant, scopes and label of an old one, which ends after a time."""
    from bmt_server.registry.keys.expiry import parse_duration

    made = _with_keys(
        registry,
        lambda keys: keys.rotate(
            key_id, overlap_s=parse_duration(overlap, "--overlap"), expires=expires
        ),
    )
    say(f"{key_id} works until {made.old.expires}; the new key is {made.new.key_id}")
    print(made.secret)


@app.command()
def revoke(
    registry: RegistryUrl, key_id: Annotated[str, typer.Argument(help="Id from `keys list`.")]
) -> None:
    """Revoke a key. Every server refuses it within seconds."""
    record = _with_keys(registry, lambda keys: keys.revoke(key_id))
    print(f"revoked {record.key_id} ({record.label or record.tenant})")
