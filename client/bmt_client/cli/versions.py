"""Commands on the versions of a mask: versions, alias, rollback, prune, retention."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from bmt_client import UsageError

from .output import age, percent, print_table, short, size
from .session import AliasName, Name, session

KeepLast = Annotated[
    int | None,
    typer.Option("--keep-last", min=1, metavar="N", help="Number of newest versions to keep."),
]
OlderThan = Annotated[
    str | None,
    typer.Option(
        "--older-than", metavar="AGE", help="Only versions of this age: 90m, 12h, 30d, 4w."
    ),
]

_NUMBERS = ("REV", "ZEROS", "SPARSITY", "SIZE", "AGE")


def versions(context: typer.Context, name: Name) -> None:
    """List the versions of a mask, newest first."""
    run = session(context)
    with run.client() as client:
        history = client.versions(name)

    def show(console: Console) -> None:
        columns = ["DIGEST", "REV", "ALIASES", "ZEROS", "SPARSITY", "SIZE", "AGE"]
        rows: list[list[str | Text]] = [
            [
                short(version.digest),
                str(version.rev),
                Text(", ".join(version.aliases), style="cyan"),
                f"{version.zeros:,}",
                percent(version.sparsity),
                size(version.bytes),
                age(version.created),
            ]
            for version in history
        ]
        print_table(console, columns, rows, _NUMBERS)

    run.out.data([version.as_dict() for version in history], show)


def alias(
    context: typer.Context,
    name: Name,
    alias: AliasName,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="REF",
            help="Its version: a digest, another alias, or math@3f9c0a1b2c3d.",
            show_default=False,
        ),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the alias; its version stays.")
    ] = False,
    if_match: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Only if the alias points at this version now."),
    ] = None,
) -> None:
    """Point an alias at a version, or remove it."""
    run = session(context)
    if (target is None) != delete:
        raise UsageError("give either REF, the version of the alias, or --delete")
    with run.client() as client:
        if target is None:
            client.delete_alias(name, alias, if_match=if_match)
            run.out.data(
                {"name": name, "alias": alias, "deleted": True},
                lambda console: console.print(f"{name}:{alias}  removed"),
            )
            return
        moved = client.set_alias(name, alias, target, if_match=if_match)
    run.out.data(
        moved.as_dict(),
        lambda console: console.print(f"{name}:{alias} -> {name}@{short(moved.digest)}"),
    )


def rollback(
    context: typer.Context,
    name: Name,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Digest or alias. Default: the version before the latest.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make an older version of a mask its latest again."""
    run = session(context)
    with run.client() as client:
        latest = client.rollback(name, to)
    run.out.data(
        latest.as_dict(),
        lambda console: console.print(f"{name} -> {latest.model}  rev {latest.rev}"),
    )


def prune(
    context: typer.Context,
    name: Name,
    keep_last: KeepLast = None,
    older_than: OlderThan = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be removed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Remove old versions of a mask.

    The latest version and versions of aliases stay. Files that no other version has go too.
    """
    run = session(context)
    with run.client() as client:
        bounds: dict[str, Any] = {"keep_last": keep_last, "older_than": older_than}
        if not dry_run and not yes and not run.out.as_json and sys.stdin.isatty():
            count = len(client.prune(name, **bounds, dry_run=True))
            if count and not typer.confirm(f"Remove {count:,} versions of {name}?", err=True):
                raise typer.Exit(1)
        removed = client.prune(name, **bounds, dry_run=dry_run)
    word = "would be removed" if dry_run else "removed"
    run.out.data(
        {"name": name, "removed": list(removed), "dry_run": dry_run},
        lambda console: console.print(f"{name}  {len(removed):,} versions {word}"),
    )


def retention(
    context: typer.Context,
    name: Name,
    keep_last: KeepLast = None,
    older_than: OlderThan = None,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Keep all versions, whatever the server's default.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the rule: the server's default applies.")
    ] = False,
) -> None:
    """Show or set the rule by which the server removes old versions of a mask.

    The latest version, versions of aliases and those that requests run on stay.
    """
    run = session(context)
    bounded = keep_last is not None or older_than is not None
    if bounded + keep_all + delete > 1:
        raise UsageError("give --keep-last and --older-than, or --keep-all, or --delete")
    with run.client() as client:
        if delete:
            rule = client.delete_retention(name)
        elif bounded or keep_all:
            rule = client.set_retention(name, keep_last=keep_last, older_than=older_than)
        else:
            rule = client.retention(name)

    def show(console: Console) -> None:
        bounds = [] if rule.keep_last is None else [f"keep the last {rule.keep_last:,}"]
        bounds += [] if rule.older_than is None else [f"remove only older than {rule.older_than}"]
        owner = "its own rule" if rule.source == "name" else "the server's default"
        console.print(f"{name}  {', '.join(bounds) or 'keep all'}  ({owner}; {rule.due:,} to go)")

    run.out.data(rule.as_dict(), show)
