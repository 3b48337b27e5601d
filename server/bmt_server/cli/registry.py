"""`bmt-server fsck` and `bmt-server gc`: consistency check and orphan collection."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from bmt_server.cli.common import AsJson, RegistryUrl, with_connection

T = TypeVar("T")


def _with_registry(url: str, work: Callable[[Any], Awaitable[T]]) -> T:
    from bmt_server.registry.registry import Registry

    async def run(connection: Any) -> T:
        return await work(await Registry.recorded(connection))

    return with_connection(url, run)


def fsck(
    registry: RegistryUrl,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare sizes only; do not hash the masks.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the registry: aliases, versions and every mask's bytes. Changes nothing.

    Exit code 1 if there is a problem."""
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
            f"{found.bytes / 1e6:,.1f} MB; {found.orphans:,} blobs without a version; "
            f"{len(found.problems):,} problems",
            highlight=False,
            soft_wrap=True,
        )
    if found.problems:
        raise typer.Exit(1)


def gc(
    registry: RegistryUrl,
    min_age: Annotated[
        float,
        typer.Option(
            "--min-age", min=0, metavar="s", help="Least age of an orphan before it is removed."
        ),
    ] = 3600.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report only; remove and record nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove blobs without a version, which deletions leave behind.

    Run it regularly: one run records new orphans, a later one removes them."""
    from bmt_server.registry.maintenance import collect_orphans

    collected = _with_registry(
        registry, lambda r: collect_orphans(r, min_age_s=min_age, dry_run=dry_run, strays=True)
    )
    if as_json:
        print(json.dumps(asdict(collected)))
        return
    did = "would free" if dry_run else f"{collected.removed:,} removed, which freed"
    print(f"{collected.orphans:,} orphaned blobs; {did} {collected.bytes / 1e6:,.1f} MB")
