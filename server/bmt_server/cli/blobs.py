"""`bmt-server blobs`: where the masks' bytes are, and their move to another place."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from bmt_core.console_script import TYPER_SETTINGS
from rich.console import Console
from rich.progress import Progress

from bmt_server.cli.common import AsJson, RegistryUrl, fail, with_connection

app = typer.Typer(
    name="blobs",
    help="Where the masks' bytes are: in Redis, or in an object store.",
    **TYPER_SETTINGS,
)


@app.command()
def show(registry: RegistryUrl, as_json: AsJson = False) -> None:
    """Print the place of blobs and their number in each place."""
    from bmt_server.registry.blobs.moving import whereabouts

    found = with_connection(registry, whereabouts)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(f"object store: {found.url or 'none'}; new blobs go to {found.writes}")
    print(
        f"{found.in_redis:,} blobs in Redis, {found.in_objects:,} objects in use, "
        f"{found.loose:,} objects in no use, which gc removes"
    )


@app.command()
def move(
    to: Annotated[
        str, typer.Argument(metavar="PLACE", help="redis, or the URL of an object store.")
    ],
    registry: RegistryUrl,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Move out of Redis even if no server was started with --blobs PLACE."
        ),
    ] = False,
    copied: Annotated[
        bool,
        typer.Option(
            "--copied", help="Only record PLACE: it is a copy of the recorded object store."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Move all blobs to PLACE while servers run. Run it again if it ends half-way.

    Exit code 1 if there are damaged blobs, which stay where they are."""
    from bmt_server.registry.blobs.moving import Mover, MoveReport
    from bmt_server.registry.blobs.place import join, record_copy

    async def run(connection: Any) -> Any:
        if copied:
            await record_copy(connection, to)
            return MoveReport()
        place = await join(connection)
        if to == "redis" and not place.url:
            return MoveReport()
        with Progress(
            "[progress.description]{task.description}",
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        ) as progress:
            task = progress.add_task("moving")

            def moved(report: MoveReport) -> None:
                progress.update(
                    task, description=f"{report.blobs:,} blobs, {report.bytes / 1e6:,.1f} MB"
                )

            mover = Mover(connection, place.url if to == "redis" else to, moved)
            return await (mover.back() if to == "redis" else mover.out(force=force))

    report = with_connection(registry, run)
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        print(f"{report.blobs:,} blobs moved to {to}, {report.bytes / 1e6:,.1f} MB")
    if report.damaged:
        fail(
            f"{len(report.damaged):,} blobs are damaged or missing and stay where they are: "
            f"{', '.join(d[:12] for d in report.damaged[:5])}…; bmt-server fsck names their masks"
        )
