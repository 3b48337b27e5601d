"""`bmt-server fsck` and `bmt-server gc`: is the registry whole, and what does it not need?"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from bmt_server.cli.keys import Url, with_store

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def _with_registry(url: str, work: Callable[[Any], Awaitable[T]]) -> T:
    from bmt_server.registry.registry import Registry

    return with_store(url, lambda store: work(Registry(store)))


def fsck(
    registry: Url,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes only, hash nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read the whole registry: aliases, versions, and every mask's bytes. Changes nothing.

    Exit code 1 where something is wrong."""
    from bmt_server.registry.maintenance import check_consistency

    found = _with_registry(registry, lambda r: check_consistency(r, deep=not quick))
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        console = Console()
        for problem in found.problems:
            console.print(f"[red]{problem.code}[/]  {escape(problem.what)} → {problem.fix}")
        console.print(
            f"{found.names:,} names, {found.versions:,} versions, {found.blobs:,} blobs, "
            f"{found.bytes / 1e6:,.1f} MB; {found.orphans:,} blobs that no version names; "
            f"{len(found.problems):,} problems",
            highlight=False,
            soft_wrap=True,
        )
    if found.problems:
        raise typer.Exit(1)


def gc(
    registry: Url,
    min_age: Annotated[
        float, typer.Option(min=0, help="Seconds that a blob must have been an orphan for.")
    ] = 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove and note nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove blobs that no version names any more, as deleted masks leave them.

    Run it from time to time: one run notes new orphans, a later one removes them."""
    from bmt_server.registry.maintenance import collect_orphans

    swept = _with_registry(
        registry, lambda r: collect_orphans(r, min_age_s=min_age, dry_run=dry_run)
    )
    if as_json:
        print(json.dumps(asdict(swept)))
        return
    did = "would free" if dry_run else f"{swept.removed:,} removed, which freed"
    print(f"{swept.orphans:,} orphaned blobs; {did} {swept.bytes / 1e6:,.1f} MB")
