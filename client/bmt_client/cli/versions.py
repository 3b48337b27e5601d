"""Commands on the versions of a mask: versions, alias, promote, rollback, prune, retention."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from bmt_client import Alias, UsageError

from .output import age, percent, print_table, short, size, splits
from .session import AliasName, Name, Session, parse_alias, session


def parse_share(text: str) -> float:
    """A share such as `5%`, in percent; without the sign it may be a fraction, so it is refused."""
    number = text.strip().removesuffix("%")
    try:
        if number == text.strip():
            raise ValueError
        return float(number)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no share; write it in percent, as 5%") from None


Share = Annotated[
    float | None,
    typer.Option(
        parser=parse_share, metavar="PERCENT", help="Share of the canary: 5%.", show_default=False
    ),
]
ShadowShare = Annotated[
    float | None,
    typer.Option(
        "--shadow-share",
        parser=parse_share,
        metavar="PERCENT",
        help="Share of requests that are copied for the shadow: 10%.",
        show_default=False,
    ),
]

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
                Text(", ".join([*version.aliases, *splits(version)]), style="cyan"),
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
    canary: Annotated[
        str | None,
        typer.Option(
            metavar="REF", help="Version that answers a share of the requests.", show_default=False
        ),
    ] = None,
    share: Share = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Version that gets copies; its answers are dropped.",
            show_default=False,
        ),
    ] = None,
    shadow_share: ShadowShare = None,
    if_match: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="Only if the alias points at this version now."),
    ] = None,
) -> None:
    """Point an alias at a version, or remove it.

    With --canary, another version answers a share of its requests, the same users each time. Its
    options without REF change the canary or the shadow of the alias; REF alone ends both.
    """
    run = session(context)
    split = (canary, share, shadow, shadow_share)
    given = any(part is not None for part in split)
    if (target is None and not given) != delete or (delete and given):
        raise UsageError("give either REF, the version of the alias, or --delete")
    with run.client() as client:
        if delete:
            client.delete_alias(name, alias, if_match=if_match)
            run.out.data(
                {"name": name, "alias": alias, "deleted": True},
                lambda console: console.print(f"{name}:{alias}  removed"),
            )
            return
        moved = client.set_alias(
            name,
            alias,
            target,
            canary=canary,
            percent=share,
            shadow=shadow,
            shadow_percent=shadow_share,
            if_match=if_match,
        )
    _print_alias(run, moved)


def _print_alias(run: Session, moved: Alias) -> None:
    def show(console: Console) -> None:
        console.print(f"{moved.name}:{moved.alias} -> {moved.name}@{short(moved.digest)}")
        parts = (
            ("canary", moved.canary, moved.percent),
            ("shadow", moved.shadow, moved.shadow_percent),
        )
        for part, digest, share in parts:
            if digest is not None:
                console.print(f"  {part} {moved.name}@{short(digest)}  {share or 0:g} %")

    run.out.data(moved.as_dict(), show)


def promote(context: typer.Context, name: Name, alias: AliasName) -> None:
    """Make the canary of an alias its version; canary and shadow end."""
    run = session(context)
    with run.client() as client:
        _print_alias(run, client.promote(name, alias))


def rollback(
    context: typer.Context,
    name: Name,
    alias: Annotated[
        str | None,
        typer.Argument(
            parser=parse_alias,
            metavar="[ALIAS]",
            help="End its canary and its shadow instead.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Digest or alias. Default: the version before the latest.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make an older version of a mask its latest again, or end the canary of an alias."""
    run = session(context)
    if alias is not None:
        if to is not None:
            raise UsageError("--to is for the latest version; an alias goes back to its own")
        with run.client() as client:
            _print_alias(run, client.rollback_alias(name, alias))
        return
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
