"""Commands `keys`: list, create, rotate and revoke the API keys of a server."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from bmt_core.console_script import TYPER_SETTINGS
from rich.console import Console

from bmt_client import ApiKey, NewApiKey

from .output import print_table
from .session import Session, session

_DURATION = "A duration (90m, 12h, 30d, 4w) or an ISO 8601 time with a zone"

app = typer.Typer(
    help="List, create, rotate and revoke API keys; with a key of scope admin.",
    **TYPER_SETTINGS,
)

KeyId = Annotated[str, typer.Argument(metavar="ID", help="Id of a key, from `keys list`.")]
Expires = Annotated[
    str | None, typer.Option(metavar="TIME", help=f"{_DURATION}.", show_default=False)
]


@app.command("list")
def list_keys(
    context: typer.Context,
    tenant: Annotated[
        str | None,
        typer.Option(metavar="TENANT", help="Only keys of this tenant.", show_default=False),
    ] = None,
) -> None:
    """List the keys of the tenant, or with a key of scope operator those of all tenants."""
    run = session(context)
    with run.client() as client:
        keys = client.keys.list(tenant=tenant)

    def show(console: Console) -> None:
        columns = ["ID", "TENANT", "SCOPES", "LABEL", "CREATED", "EXPIRES", "STATUS"]
        rows = [
            (
                *(key.key_id, key.tenant, ",".join(key.scopes), key.label, key.created),
                *(key.expires or "never", key.status),
            )
            for key in keys
        ]
        print_table(console, columns, rows)
        for key in keys:
            if key.fault:
                run.out.note(f"key {key.key_id} is refused by all servers: {key.fault}; revoke it")

    run.out.data([key.as_dict() for key in keys], show)


@app.command()
def create(
    context: typer.Context,
    scope: Annotated[
        list[str],
        typer.Option(
            metavar="SCOPE",
            help="infer, priority, upload, promote, metrics, admin or operator; repeatable.",
        ),
    ],
    tenant: Annotated[
        str | None,
        typer.Option(metavar="TENANT", help="Default: that of your key.", show_default=False),
    ] = None,
    label: Annotated[str, typer.Option(metavar="TEXT", help="A note for people.")] = "",
    expires: Expires = None,
) -> None:
    """Make a key and print it. It is never shown again."""
    run = session(context)
    with run.client() as client:
        made = client.keys.create(scope, tenant=tenant, label=label, expires=expires)
    _print_secret(run, made)


@app.command()
def rotate(
    context: typer.Context,
    key_id: KeyId,
    overlap: Annotated[
        str,
        typer.Option(metavar="TIME", help="Time for which the old key still works; 0m for none."),
    ] = "1h",
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help=f"Expiry of the new key. {_DURATION}. Default: the old one's.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print a new key in place of another one, with its tenant, scopes and label."""
    run = session(context)
    with run.client() as client:
        made = client.keys.rotate(key_id, overlap=overlap, expires=expires)
    if made.replaces is not None:
        run.out.note(f"{key_id} works until {made.replaces.expires}")
    _print_secret(run, made)


@app.command()
def revoke(
    context: typer.Context,
    key_id: KeyId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """End a key. Every server refuses it within seconds."""
    run = session(context)
    if not yes and not run.out.as_json and sys.stdin.isatty():
        typer.confirm(f"Revoke key {key_id}?", abort=True, err=True)
    with run.client() as client:
        client.keys.revoke(key_id)
    run.out.data(
        {"key_id": key_id, "revoked": True}, lambda console: console.print(f"{key_id}  revoked")
    )


def _print_secret(run: Session, made: NewApiKey) -> None:
    """The secret alone on stdout, for `$(…)`; the rest as a note."""
    run.out.note(f"key {_described(made)}; it is shown only once")
    run.out.data(made.as_dict(), lambda console: console.print(made.key))


def _described(key: ApiKey) -> str:
    ends = f", until {key.expires}" if key.expires else ""
    return f"{key.key_id} of {key.tenant}: {', '.join(key.scopes)}{ends}"
