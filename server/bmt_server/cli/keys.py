"""`bmt-server keys`: make, list and revoke API keys, in any registry that this host reaches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

Url = Annotated[
    str,
    typer.Option(
        "--registry",
        envvar="BMT_REGISTRY",
        help="redis://, rediss:// or unix:// URL. A running server prints its embedded one.",
    ),
]
T = TypeVar("T")


def with_store(url: str, work: Callable[[Any], Awaitable[T]]) -> T:
    """Result of `work` on a `RegistryConnection`; registry errors print one line and exit 1."""
    from bmt_server.errors import ApiError
    from bmt_server.registry.connection import RegistryConnection

    async def run() -> T:
        store = RegistryConnection(url)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except (ApiError, ValueError) as error:
        Console(stderr=True).print(f"[red]bmt-server:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None


def _with_keys(url: str, work: Callable[..., Awaitable[T]]) -> T:
    from bmt_server.registry.api_keys import ApiKeyStore

    return with_store(url, lambda store: work(ApiKeyStore(store)))


@app.command()
def create(
    registry: Url,
    scope: Annotated[list[str], typer.Option(help="infer, upload or admin; repeatable.")],
    tenant: Annotated[str, typer.Option(help="Whose masks the key sees.")] = "default",
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    expires: Annotated[str | None, typer.Option(help="ISO 8601 time, with time zone.")] = None,
) -> None:
    """Make a key and print it; it is never shown again."""
    made = _with_keys(
        registry,
        lambda keys: keys.create(tuple(scope), tenant=tenant, label=label, expires=expires),
    )
    assert made is not None
    print(made[0])


@app.command()
def generate() -> None:
    """Print an administrator's key that no registry knows yet: for BMT_ADMIN_KEY, which a server
    adopts at its start."""
    from bmt_server.registry.api_keys import make_key

    print(make_key(("admin",)))


@app.command("list")
def list_keys(
    registry: Url,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
) -> None:
    """List keys by id; secrets are not kept anywhere."""
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
    registry: Url, key_id: Annotated[str, typer.Argument(help="As `keys list` says.")]
) -> None:
    """End a key; every server refuses it within seconds."""
    record = _with_keys(registry, lambda keys: keys.revoke(key_id))
    print(f"revoked {record.key_id} ({record.label or record.tenant})")
